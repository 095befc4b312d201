//! The 88-byte CheckPoint value and the rules that keep it right after each record (spec wal.md 6, keyspace.md 5.10).
//!
//! It is PostgreSQL's C structure, little-endian, padding carried along. A server may be started at any LSN, so the
//! value must be right everywhere, not only at checkpoints; `nextXid` runs ahead by up to 1023 to save writes.

/// Length of the structure in all supported versions.
pub const CHECKPOINT_LEN: usize = 88;

/// `nextXid` is kept at a multiple of this. It must not exceed the 32,768 transactions of one CLOG page, so that the
/// server that starts from the value still extends CLOG itself.
pub const XID_ROUNDING: u32 = 1024;
/// Transaction ids below this have a fixed meaning.
pub const FIRST_NORMAL_XID: u32 = 3;

/// The checkpoint value, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckPoint(pub [u8; CHECKPOINT_LEN]);

/// A stored checkpoint that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckPointError {
    #[error("checkpoint value has {0} bytes instead of {CHECKPOINT_LEN}")]
    Length(usize),
    #[error("checkpoint value has fullPageWrites {0}")]
    FullPageWrites(u8),
}

/// True if `a` is later than `b` on the circle of 32-bit numbers.
pub fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

macro_rules! field {
    ($get:ident, $set:ident, $at:literal, $type:ty) => {
        pub fn $get(&self) -> $type {
            let mut bytes = [0; std::mem::size_of::<$type>()];
            bytes.copy_from_slice(&self.0[$at..$at + std::mem::size_of::<$type>()]);
            <$type>::from_le_bytes(bytes)
        }

        pub fn $set(&mut self, value: $type) {
            self.0[$at..$at + std::mem::size_of::<$type>()].copy_from_slice(&value.to_le_bytes());
        }
    };
}

impl CheckPoint {
    field!(redo, set_redo, 0, u64);
    field!(this_tli, set_this_tli, 8, u32);
    field!(prev_tli, set_prev_tli, 12, u32);
    // In versions before 17 these are padding.
    field!(wal_level, set_wal_level, 20, i32);
    field!(next_xid, set_next_xid, 24, u64);
    field!(next_oid, set_next_oid, 32, u32);
    field!(next_multi, set_next_multi, 36, u32);
    field!(next_multi_offset, set_next_multi_offset, 40, u32);
    field!(oldest_xid, set_oldest_xid, 44, u32);
    field!(oldest_xid_db, set_oldest_xid_db, 48, u32);
    field!(oldest_multi, set_oldest_multi, 52, u32);
    field!(oldest_multi_db, set_oldest_multi_db, 56, u32);
    field!(time, set_time, 64, i64);
    field!(oldest_active_xid, set_oldest_active_xid, 80, u32);

    /// Takes the bytes of a stored value, or of a checkpoint record.
    pub fn decode(bytes: &[u8]) -> Result<CheckPoint, CheckPointError> {
        let value = CheckPoint(bytes.try_into().map_err(|_| CheckPointError::Length(bytes.len()))?);
        match value.0[16] {
            0 | 1 => Ok(value),
            other => Err(CheckPointError::FullPageWrites(other)),
        }
    }

    /// Notes that `xid` is in use; true if `nextXid` changed.
    pub fn update_next_xid(&mut self, xid: u32) -> bool {
        let next = xid.wrapping_add(1).max(FIRST_NORMAL_XID);
        let rounded = next.wrapping_add(XID_ROUNDING - 1) / XID_ROUNDING * XID_ROUNDING;
        let current = self.next_xid();
        let low = current as u32;
        if rounded.wrapping_sub(low) as i32 <= 0 {
            return false;
        }
        let epoch = (current >> 32).wrapping_add(u64::from(rounded < low));
        self.set_next_xid(epoch << 32 | u64::from(rounded));
        true
    }

    /// Notes the next multixact and the next member offset, each only forwards; true if one changed.
    pub fn update_next_multixid(&mut self, multi: u32, offset: u32) -> bool {
        let mut changed = false;
        if multi.wrapping_sub(self.next_multi()) as i32 > 0 {
            self.set_next_multi(multi);
            changed = true;
        }
        if offset.wrapping_sub(self.next_multi_offset()) as i32 > 0 {
            self.set_next_multi_offset(offset);
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zero() -> CheckPoint {
        CheckPoint::decode(&[0; CHECKPOINT_LEN]).unwrap()
    }

    #[test]
    fn only_88_bytes_are_a_checkpoint() {
        for n in [0, 87, 89] {
            assert_eq!(CheckPoint::decode(&vec![0; n]), Err(CheckPointError::Length(n)));
        }
        let mut bytes = [0; CHECKPOINT_LEN];
        bytes[16] = 2;
        assert_eq!(CheckPoint::decode(&bytes), Err(CheckPointError::FullPageWrites(2)));
    }

    #[test]
    fn next_xid_is_rounded_up_and_never_goes_back() {
        let mut c = zero();
        c.set_next_xid(10);
        for (xid, want, changed) in [(100, 1024, true), (500, 1024, false), (1023, 1024, false), (1024, 2048, true)] {
            assert_eq!((c.update_next_xid(xid), c.next_xid()), (changed, want), "xid {xid}");
        }
        assert!(!c.update_next_xid(3));
    }

    #[test]
    fn next_xid_counts_epochs_at_wraparound() {
        let mut c = zero();
        c.set_next_xid(7 << 32 | 0xFFFF_FC00);
        assert!(!c.update_next_xid(0xFFFF_FBFF));
        assert!(c.update_next_xid(0xFFFF_FC00));
        assert_eq!(c.next_xid(), 8 << 32, "rounded up to the end of the epoch");
        assert!(c.update_next_xid(3));
        assert_eq!(c.next_xid(), 8 << 32 | 1024);
        assert!(!c.update_next_xid(0xFFFF_FFFF), "an id of the last epoch");
    }

    #[test]
    fn next_multixid_moves_both_parts_independently() {
        let mut c = zero();
        c.set_next_multi(20);
        c.set_next_multi_offset(20);
        let mut check = |multi, offset, want| {
            c.update_next_multixid(multi, offset);
            assert_eq!((c.next_multi(), c.next_multi_offset()), want);
        };
        check(1000, 2000, (1000, 2000));
        check(500, 900, (1000, 2000));
        let mut c = zero();
        c.set_next_multi(0xFFFF_0000);
        c.set_next_multi_offset(0xFFFE_0000);
        let start = c.clone();
        c.update_next_multixid(1, 900);
        assert_eq!((c.next_multi(), c.next_multi_offset()), (1, 900));
        let mut c = start;
        c.update_next_multixid(0, 0xFFFE_00FF);
        assert_eq!((c.next_multi(), c.next_multi_offset()), (0, 0xFFFE_00FF));
    }

    #[test]
    fn fields_lie_where_the_structure_has_them() {
        let mut c = zero();
        c.set_this_tli(0x0101_0101);
        c.set_wal_level(0x0202_0202);
        c.set_next_oid(0x0303_0303);
        c.set_oldest_active_xid(0x0404_0404);
        let bytes: Vec<_> = c.0.iter().enumerate().filter(|(_, b)| **b != 0).map(|(i, b)| (i, *b)).collect();
        let want: Vec<_> =
            [(8, 1), (20, 2), (32, 3), (80, 4)].iter().flat_map(|(at, v)| (0..4).map(move |i| (at + i, *v))).collect();
        assert_eq!(bytes, want);
    }

    #[test]
    fn comparison_wraps() {
        assert!(is_after(1, u32::MAX) && !is_after(u32::MAX, 1) && !is_after(5, 5));
    }
}
