//! What the authority has taken and may lose again.
//!
//! A push is answered when the authority's store has the bytes, which need not survive its machine; only a sync
//! promises that. So what was pushed since the last sync is remembered, and becomes dirty again when the
//! authority has been started anew: it is pushed once more, and the sync that is under way, or comes next,
//! speaks for all of it. (NFS has the write verifier for this: RFC 1813, section 3.3.21.)
//!
//! The same goes for a sync that fails: a kernel that cannot write pages to its disk says so once, and takes them for
//! written afterwards.

use super::region::Region;
use crate::region::PageSet;
use crate::units::PageRange;
use std::collections::BTreeMap;
use std::sync::Arc;

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

    /// These pages have come from the authority since: what is here of them is not what was pushed.
    pub fn arrived(&mut self, pages: PageRange) {
        self.pushed.remove(pages);
        for syncing in self.syncing.values_mut() {
            syncing.remove(pages);
        }
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

/// A sync under way. Given up, it has failed.
pub(super) struct Syncing {
    region: Arc<Region>,
    sync: Option<SyncId>,
}

impl Syncing {
    /// It begins.
    pub fn begin(region: &Arc<Region>) -> Syncing {
        let sync = region.update(|inner| inner.unsynced.begin());
        Syncing {
            region: region.clone(),
            sync: Some(sync),
        }
    }

    /// It has ended: whether it speaks for what was pushed before it.
    pub fn end(mut self, well: bool) -> bool {
        let Some(sync) = self.sync.take() else {
            return false;
        };
        self.region.update(|inner| inner.end_sync(sync, well))
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some(sync) = self.sync.take() {
            self.region.update(|inner| inner.end_sync(sync, false));
        }
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
    fn what_others_have_stored_since_is_theirs() {
        let mut unsynced = Unsynced::default();
        unsynced.pushed(PageRange::new(0, 4));
        let sync = unsynced.begin();
        unsynced.pushed(PageRange::new(3, 6));
        unsynced.arrived(PageRange::new(2, 5));
        assert!(!unsynced.end(sync, false));
        assert_eq!(
            pages(&mut unsynced),
            [PageRange::new(0, 2), PageRange::new(5, 6)]
        );
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
