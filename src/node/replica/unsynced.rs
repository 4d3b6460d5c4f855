//! What the authority has taken and may lose again.
//!
//! A push is answered when the authority's store has the bytes, which need not survive its machine; only a sync
//! promises that. So what was pushed since the last sync is remembered, and becomes dirty again when the
//! authority has been started anew: it is pushed once more, and the sync that is under way, or comes next,
//! speaks for all of it. (NFS has the write verifier for this: RFC 1813, section 3.3.21.)

use crate::region::PageSet;
use crate::units::PageRange;
use std::collections::BTreeMap;

/// Names a sync of this region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyncId(u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// Pushed since the last sync began.
    pushed: PageSet,
    /// Pushed before a sync that is under way.
    syncing: BTreeMap<u64, PageSet>,
    syncs: u64,
}

impl Unsynced {
    /// The authority has taken these pages.
    pub fn pushed(&mut self, pages: PageRange) {
        self.pushed.insert(pages);
    }

    /// A sync begins: it will speak for all that was pushed up to now.
    pub fn begin(&mut self) -> SyncId {
        self.syncs += 1;
        self.syncing
            .insert(self.syncs, std::mem::take(&mut self.pushed));
        SyncId(self.syncs)
    }

    /// A sync has ended. False if the authority was started anew since it began, or it failed: then it
    /// speaks for nothing, and what it was to speak for is still remembered, or dirty again.
    pub fn end(&mut self, sync: SyncId, well: bool) -> bool {
        let Some(pages) = self.syncing.remove(&sync.0) else {
            return false;
        };
        if !well {
            pages.runs().for_each(|run| self.pushed.insert(run));
        }
        well
    }

    /// The authority was started anew: all that has to be pushed again.
    pub fn lost(&mut self) -> PageSet {
        let mut lost = std::mem::take(&mut self.pushed);
        for pages in std::mem::take(&mut self.syncing).values() {
            pages.runs().for_each(|run| lost.insert(run));
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(unsynced: &mut Unsynced) -> Vec<PageRange> {
        unsynced.lost().runs().collect()
    }

    #[test]
    fn a_sync_speaks_for_what_was_pushed_before_it() {
        let mut unsynced = Unsynced::default();
        unsynced.pushed(PageRange::new(0, 2));
        let sync = unsynced.begin();
        unsynced.pushed(PageRange::new(1, 3));
        assert!(unsynced.end(sync, true));
        assert_eq!(pages(&mut unsynced), [PageRange::new(1, 3)]);
    }

    #[test]
    fn a_sync_that_failed_or_met_a_restart_speaks_for_nothing() {
        let mut unsynced = Unsynced::default();
        unsynced.pushed(PageRange::new(0, 2));
        let sync = unsynced.begin();
        assert!(!unsynced.end(sync, false));
        let sync = unsynced.begin();
        unsynced.pushed(PageRange::new(5, 6));
        assert_eq!(
            pages(&mut unsynced),
            [PageRange::new(0, 2), PageRange::new(5, 6)]
        );
        assert!(!unsynced.end(sync, true));
        assert!(pages(&mut unsynced).is_empty());
    }
}
