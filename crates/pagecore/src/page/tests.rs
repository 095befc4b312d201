//! The page against a list of items: whatever is done to both, the items are the same.

use super::*;

/// A generator of numbers without a crate: the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn item(&mut self) -> Vec<u8> {
        let fill = self.below(256) as u8;
        vec![fill; 8 + self.below(60)]
    }

    fn offset(&mut self, n: usize) -> u16 {
        1 + self.below(n) as u16
    }
}

/// What the page holds, by offset number from 1; none for an unused line pointer.
type Model = Vec<Option<Vec<u8>>>;

fn check(page: &Page<'_>, model: &Model) {
    let limits = page.limits().unwrap();
    assert_eq!(usize::from(limits.item_count()), model.len());
    for (offset, want) in (1..).zip(model) {
        match want {
            Some(item) => assert_eq!(page.item_bytes(offset).unwrap(), item),
            None => assert!(!page.item(offset).unwrap().is_used()),
        }
    }
    let used: usize = model.iter().flatten().map(|item| maxalign(item.len())).sum();
    assert_eq!(limits.special - limits.upper, used, "no space is lost between items");
}

fn used_offset(chance: &mut Chance, model: &Model) -> Option<u16> {
    let used: Vec<u16> = (1..).zip(model).filter(|(_, item)| item.is_some()).map(|(offset, _)| offset).collect();
    used.get(chance.below(used.len())).copied()
}

#[test]
fn index_pages_hold_what_a_list_of_items_holds() {
    let mut chance = Chance(1);
    for _ in 0..30 {
        let mut bytes = [0; BLCKSZ];
        let mut page = Page::new(&mut bytes);
        page.init(16);
        let mut model: Model = Vec::new();
        for _ in 0..400 {
            let item = chance.item();
            match chance.below(8) {
                0 if !model.is_empty() => {
                    let offset = chance.offset(model.len());
                    page.delete_item(offset).unwrap();
                    model.remove(usize::from(offset) - 1);
                }
                1 => {
                    let gone: Vec<u16> = (1..=model.len() as u16).filter(|_| chance.below(9) == 0).collect();
                    page.delete_items(&gone).unwrap();
                    gone.iter().rev().for_each(|&offset| drop(model.remove(usize::from(offset) - 1)));
                }
                2 if !model.is_empty() => {
                    let offset = chance.offset(model.len());
                    if page.overwrite_item(offset, &item).is_ok() {
                        model[usize::from(offset) - 1] = Some(item);
                    }
                }
                _ => {
                    let offset = chance.offset(model.len() + 1);
                    if page.add_item(offset, &item).is_ok() {
                        model.insert(usize::from(offset) - 1, Some(item));
                    }
                }
            }
            check(&page, &model);
        }
    }
}

#[test]
fn pages_with_unused_line_pointers_hold_what_a_list_with_gaps_holds() {
    let mut chance = Chance(2);
    for _ in 0..30 {
        let mut bytes = [0; BLCKSZ];
        let mut page = Page::new(&mut bytes);
        page.init(8);
        let mut model: Model = Vec::new();
        for _ in 0..400 {
            let item = chance.item();
            match (chance.below(8), used_offset(&mut chance, &model)) {
                (0 | 1, Some(offset)) => {
                    page.delete_item_keep_pointer(offset).unwrap();
                    model[usize::from(offset) - 1] = None;
                    if usize::from(offset) == model.len() {
                        model.pop();
                    }
                }
                (2, Some(offset)) => {
                    page.set_item(offset, ItemId::UNUSED).unwrap();
                    model[usize::from(offset) - 1] = None;
                    page.repair_fragmentation(true).unwrap();
                    while model.last() == Some(&None) {
                        model.pop();
                    }
                    assert_eq!(page.flags() & HAS_FREE_LINES != 0, model.iter().any(Option::is_none));
                }
                (3, _) if !model.is_empty() => {
                    page.truncate_line_pointers().unwrap();
                    while model.len() > 1 && model.last() == Some(&None) {
                        model.pop();
                    }
                }
                _ => {
                    let gap = model.iter().position(Option::is_none);
                    let at = gap.filter(|_| chance.below(2) == 0).unwrap_or(model.len());
                    if let Ok(place) = page.alloc_at(at as u16 + 1, item.len()) {
                        page.put(place, &item).unwrap();
                        model.resize(model.len().max(at + 1), None);
                        model[at] = Some(item);
                    }
                }
            }
            check(&page, &model);
        }
    }
}

#[test]
fn fragmentation_is_repaired_as_each_version_does() {
    let build = |truncate| {
        let mut bytes = [0; BLCKSZ];
        let mut page = Page::new(&mut bytes);
        page.init(0);
        for offset in 1..=4 {
            page.add_item(offset, &[offset as u8; 10]).unwrap();
        }
        page.set_item(1, ItemId::new(3, ItemState::Redirect, 0)).unwrap();
        page.set_item(2, ItemId::UNUSED).unwrap();
        page.set_item(4, ItemId::UNUSED).unwrap();
        page.repair_fragmentation(truncate).unwrap();
        assert_eq!(page.item(1).unwrap().state(), ItemState::Redirect);
        assert_eq!(page.item_bytes(3).unwrap(), [3; 10]);
        assert_eq!(page.item(3).unwrap().offset(), 8176);
        assert_eq!(page.flags(), HAS_FREE_LINES);
        page.item_count().unwrap()
    };
    assert_eq!((build(false), build(true)), (4, 3));
}

#[test]
fn many_gaps_close_and_redirects_between_items_stay() {
    for step in [2, 3, 7] {
        let mut bytes = [0; BLCKSZ];
        let mut page = Page::new(&mut bytes);
        page.init(0);
        let mut model: Model = (0..150).map(|i| Some(vec![i; 30])).collect();
        for (offset, item) in (1..).zip(&model) {
            page.add_item(offset, item.as_ref().unwrap()).unwrap();
        }
        for offset in (1..=150).step_by(step) {
            page.set_item(offset, ItemId::new(2, ItemState::Redirect, 0)).unwrap();
            model[usize::from(offset) - 1] = None;
        }
        page.repair_fragmentation(true).unwrap();
        let used = model.iter().flatten().count();
        assert_eq!(page.limits().unwrap().upper, BLCKSZ - 32 * used);
        for (offset, want) in (1..).zip(&model) {
            match want {
                Some(item) => assert_eq!(page.item_bytes(offset).unwrap(), item),
                None => assert_eq!(page.item(offset).unwrap(), ItemId::new(2, ItemState::Redirect, 0)),
            }
        }
    }
}

#[test]
fn items_that_overlap_are_a_fault_and_nothing_moves() {
    let mut bytes = [0; BLCKSZ];
    let mut page = Page::new(&mut bytes);
    page.init(0);
    for offset in 1..=200 {
        page.add_item(offset, &[1; 24]).unwrap();
    }
    let lowest = page.limits().unwrap().upper;
    for offset in 1..=200 {
        // Each alone lies in its place; together they need more than there is.
        page.set_item(offset, ItemId::new(lowest as u16, ItemState::Normal, 4000)).unwrap();
    }
    let before = *page.bytes();
    assert_eq!(page.repair_fragmentation(true), Err(Fault::Page("items overlap")));
    assert_eq!(*page.bytes(), before);
}

#[test]
fn contradictions_are_faults() {
    let mut bytes = [0; BLCKSZ];
    let mut page = Page::new(&mut bytes);
    page.init(16);
    page.add_item(1, &[1; 16]).unwrap();
    assert!(page.item(0).is_err() && page.item(2).is_err() && page.item_bytes(u16::MAX).is_err());
    assert!(page.add_item(3, &[1; 16]).is_err(), "a gap in the line pointers");
    assert!(page.alloc_at(1, 16).is_err(), "a line pointer in use");
    assert!(page.add_item(2, &[1; 9000]).is_err());
    assert!(page.delete_items(&[2, 1]).is_err() && page.delete_items(&[1, 2, 3]).is_err());
    page.set_item(1, ItemId::new(8190, ItemState::Normal, 16)).unwrap();
    assert!(page.item_bytes(1).is_err() && page.delete_item(1).is_err() && page.repair_fragmentation(true).is_err());
    page.set_lower(20);
    assert!(page.limits().is_err());
    page.set_lower(9000);
    assert!(page.limits().is_err());
}

#[test]
fn transaction_ids_are_ordered_in_a_circle() {
    assert!(xid_precedes(5, 6) && !xid_precedes(6, 5) && xid_precedes(0xFFFF_FFF0, 5));
    assert!(xid_precedes(2, 0xFFFF_FFF0), "special ids come before all others");
    let mut bytes = [0; BLCKSZ];
    let mut page = Page::new(&mut bytes);
    for (xid, want) in [(100, 100), (200, 100), (50, 50), (0xFFFF_FFF0, 0xFFFF_FFF0)] {
        page.set_prunable(xid);
        assert_eq!(page.prune_xid(), want);
    }
}
