//! A line pointer: where on its page an item is, how long, and in what state.

/// What a line pointer says of its item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    Unused = 0,
    Normal = 1,
    Redirect = 2,
    Dead = 3,
}

/// One line pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemId(pub(super) u32);

impl ItemId {
    pub const UNUSED: ItemId = ItemId(0);

    pub fn new(offset: u16, state: ItemState, length: u16) -> ItemId {
        ItemId(u32::from(offset & 0x7FFF) | (state as u32) << 15 | u32::from(length & 0x7FFF) << 17)
    }

    /// Where the item starts; of a redirect, the offset number it points to.
    pub fn offset(self) -> u16 {
        (self.0 & 0x7FFF) as u16
    }

    pub fn length(self) -> u16 {
        (self.0 >> 17) as u16
    }

    pub fn state(self) -> ItemState {
        match (self.0 >> 15) & 3 {
            0 => ItemState::Unused,
            1 => ItemState::Normal,
            2 => ItemState::Redirect,
            _ => ItemState::Dead,
        }
    }

    pub fn is_used(self) -> bool {
        (self.0 >> 15) & 3 != 0
    }

    pub fn has_storage(self) -> bool {
        self.length() != 0
    }

    pub fn with_offset(self, offset: u16) -> ItemId {
        ItemId(self.0 & !0x7FFF | u32::from(offset & 0x7FFF))
    }

    pub fn with_length(self, length: u16) -> ItemId {
        ItemId(self.0 & 0x1_FFFF | u32::from(length & 0x7FFF) << 17)
    }

    /// From the four bytes of the array.
    pub(super) fn read(slot: &[u8]) -> ItemId {
        ItemId(slot.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))
    }

    pub fn without_state(self) -> ItemId {
        ItemId(self.0 & !0x1_8000)
    }
}
