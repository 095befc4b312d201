//! The visibility map: two bits per heap block, from byte 24 of each page of fork 2 (spec walredo.md 5, 8.3).

use crate::key::{Key, VM_FORK};
use crate::page::{Fault, Page, PageBytes, HEADER_SIZE};
use crate::Lsn;

use super::{Applied, Change};

/// Heap blocks whose bits one page of the map holds.
const BLOCKS_PER_PAGE: u32 = 32672;
/// All visible, all frozen.
pub const VALID_BITS: u8 = 3;

/// Map page, byte on it and shift of a heap block's bits.
fn place(heap_block: u32) -> (u32, usize, u8) {
    let on_page = heap_block % BLOCKS_PER_PAGE;
    (heap_block / BLOCKS_PER_PAGE, HEADER_SIZE + (on_page / 4) as usize, 2 * (on_page % 4) as u8)
}

/// Sets the bits of one heap block, if they are not as asked already.
pub fn set(map_block: u32, page: &mut Page<'_>, heap_block: u32, bits: u8) -> Applied {
    let (block, at, shift) = place(heap_block);
    if block != map_block {
        return Err(Fault::Record("the heap block belongs to another page of the map"));
    }
    let byte = &mut page.slice_mut(at, 1)?[0];
    if *byte >> shift & VALID_BITS == bits {
        return Ok(Change::Keep);
    }
    *byte |= bits << shift;
    Ok(Change::Stamp)
}

fn check_fork(key: &Key) -> Result<(), Fault> {
    if key.is_rel_block() && key.field5 == VM_FORK {
        Ok(())
    } else {
        Err(Fault::Record("the key is not a page of a visibility map"))
    }
}

/// Clears `bits` of up to two heap blocks; the page gets the LSN unless it is new.
pub fn clear(key: &Key, bytes: &mut PageBytes, lsn: Lsn, heap_blocks: [Option<u32>; 2], bits: u8) -> Result<(), Fault> {
    check_fork(key)?;
    for heap_block in heap_blocks.into_iter().flatten() {
        let (block, at, shift) = place(heap_block);
        if block != key.field6 {
            return Err(Fault::Record("the heap block belongs to another page of the map"));
        }
        bytes[at] &= !((bits & VALID_BITS) << shift);
    }
    let mut page = Page::new(bytes);
    if !page.is_new() {
        page.set_lsn(lsn);
    }
    Ok(())
}

/// Clears everything behind bit `bit_offset` of byte `byte` of the map.
pub fn truncate(key: &Key, bytes: &mut PageBytes, byte: u64, bit_offset: u64) -> Result<(), Fault> {
    check_fork(key)?;
    let at = usize::try_from(byte).ok().and_then(|byte| byte.checked_add(HEADER_SIZE));
    let map = at.and_then(|at| bytes.get_mut(at..)).ok_or(Fault::Record("the byte lies beyond the page"))?;
    let Some((first, rest)) = map.split_first_mut() else {
        return Err(Fault::Record("the byte lies beyond the page"));
    };
    if bit_offset > 7 {
        return Err(Fault::Record("the bit lies beyond its byte"));
    }
    rest.fill(0);
    *first &= (1u8 << bit_offset) - 1;
    Ok(())
}
