//! What is stored at a mount, kept the slow way, and what must hold after each step.

use super::mount::Mount;
use super::world::{CELL_BYTES, PAGES, World};
use crate::region::{FlushId, PageSet, PushId};
use crate::units::PageRange;
use std::collections::{BTreeMap, BTreeSet};

/// What is stored here, by page, kept the slow way.
#[derive(Debug, Default)]
pub struct Stored {
    pub dirty: BTreeSet<u64>,
    pub pushing: BTreeMap<PushId, BTreeMap<u64, u64>>,
    /// Of each page: number of its last store, and of the last store that the authority has.
    pub last: BTreeMap<u64, u64>,
    pub taken: BTreeMap<u64, u64>,
    /// What each flush waits for: pages, and the store of each.
    pub flushes: BTreeMap<FlushId, BTreeMap<u64, u64>>,
}

impl Stored {
    pub fn unpushed(&self) -> BTreeSet<u64> {
        let pushing = self.pushing.values().flat_map(|push| push.keys());
        self.dirty.iter().chain(pushing).copied().collect()
    }

    fn waits(&self, flush: &BTreeMap<u64, u64>) -> bool {
        let has = |(page, store): (&u64, &u64)| self.taken.get(page).is_some_and(|it| it >= store);
        !flush.iter().all(has)
    }

    pub fn forget(&mut self, from: u64) {
        self.dirty.retain(|&page| page < from);
        for push in self.pushing.values_mut() {
            push.retain(|&page, _| page < from);
        }
        for flush in self.flushes.values_mut() {
            flush.retain(|&page, _| page < from);
        }
    }
}

impl Mount {
    /// Flushes that have ended: not too early, and not too late.
    pub fn end_flushes(&mut self) {
        let Some(core) = &mut self.core else {
            return;
        };
        while let Some((flush, outcome)) = core.poll_flushed() {
            let waits_for = self.stored.flushes.remove(&flush).expect("ends once");
            assert!(outcome.is_err() || !self.stored.waits(&waits_for));
        }
        let mut waiting = self.stored.flushes.values();
        assert!(
            waiting.all(|flush| self.stored.waits(flush)),
            "a flush hangs"
        );
    }

    /// What must hold whenever nothing is in the middle of being done.
    pub fn check(&self, world: &World) {
        let Some(core) = &self.core else {
            return;
        };
        let (present, dirty, pushing) = core.sets();
        let listed = |set: &PageSet| set.runs().flat_map(|run| run.start..run.end).collect();
        let pushing: BTreeSet<u64> = listed(pushing);
        assert_eq!(listed(dirty), self.stored.dirty);
        assert_eq!(
            pushing,
            self.stored
                .pushing
                .values()
                .flat_map(|it| it.keys().copied())
                .collect()
        );
        let unpushed = self.stored.unpushed();
        assert_eq!(core.dirty_pages(), unpushed.len() as u64);
        let base = core.base_size() / CELL_BYTES;
        let base_end = base.div_ceil(2);
        for page in 0..PAGES {
            let stored = unpushed.contains(&page);
            let is_present = present.contains_all(PageRange::new(page, page + 1));
            assert!(is_present || !stored, "page {page} was stored");
            assert!(
                !is_present || stored || page < base_end,
                "page {page} is past the end"
            );
            for cell in page * 2..page * 2 + 2 {
                let held = self.copy[cell as usize];
                if cell >= self.size() || (cell >= base && !stored) {
                    assert_eq!(held, 0, "cell {cell} is past the end");
                } else if let (true, Some(&mine)) = (is_present, self.mine.get(&cell)) {
                    assert_eq!(held, mine, "cell {cell} is not as it was stored");
                }
                if is_present && !stored && cell < base {
                    let since = self.known[cell as usize];
                    let fresh = world.has_held(cell, held, since);
                    assert!(fresh, "cell {cell} holds {held}: old, {since} is known");
                }
            }
        }
    }
}
