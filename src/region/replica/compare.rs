//! Old pages: absent ones of which the local copy holds bytes from before that the authority may still have.
//!
//! ```text
//!     old ──poll_comparison──▶ compared ──confirmed──▶ present
//!      ▲                         │  │
//!      └────── link broke ───────┘  └──the rest──▶ absent, wanted
//!
//!     from anywhere: stored, landed, cut off, forgotten ──▶ not old any more
//! ```
//!
//! Whether the bytes are the authority's is found by comparing hashes, so nothing has to be known about them. What
//! is compared must stay as it is until it is confirmed: a page that is written in between, for whatever
//! reason, leaves its comparison and is not confirmed by it, nor is a page that has changed at the authority since
//! ([`super::stale`] knows comparisons by the same numbers as pulls).
//!
//! A fault does not wait for a comparison, which would cost it a round trip: it pulls. But one near the last one
//! does, and one for much at once, for there will be more of them, as when a file is read from end to end; and what nobody asked for is compared
//! before it is pulled.

use super::{PageSet, PullId, Replica, Tick};
use crate::units::{ByteRange, PAGE_BYTES, PageRange, pages_for};
use std::collections::BTreeMap;

/// Faults are near each other that are no further apart than this, in pages: those of one reader may be
/// answered in any order.
const NEAR_PAGES: u64 = (1 << 20) / PAGE_BYTES;
/// A fault of more than this is one of many, in pages: more than the kernel reads ahead at the first touch.
const FEW_PAGES: u64 = (128 << 10) / PAGE_BYTES;
/// How far old pages are compared ahead of such faults where there is no background, in pages.
pub(super) const AHEAD_PAGES: u64 = (16 << 20) / PAGE_BYTES;

/// Names a comparison of this region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ComparisonId(PullId);

/// A comparison to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Its name.
    pub id: ComparisonId,
    /// Ascending, not touching, not empty.
    pub pages: Vec<PageRange>,
}

/// How a comparison ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// What was not confirmed is another one at the authority.
    Done,
    /// The link broke: worth doing again once there is a link.
    Link,
    /// It cannot be done: what was to be compared has to be pulled.
    Refused,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Old {
    /// All old pages.
    pub pages: PageSet,
    /// Those of them that are being compared.
    pub comparing: PageSet,
    /// The last fault was near the one before, or for much at once: more of what is being compared will be asked for.
    pub is_near: bool,
    /// The last fault.
    pub last: PageRange,
    /// Each comparison under way, with those of its pages that are as they were when it began.
    under_way: BTreeMap<PullId, PageSet>,
}

impl Old {
    /// The oldest comparison under way.
    pub fn oldest(&self) -> Option<PullId> {
        self.under_way.first_key_value().map(|(&id, _)| id)
    }

    /// There was a fault.
    pub fn follow(&mut self, pages: PageRange) {
        let last = std::mem::replace(&mut self.last, pages);
        let apart = pages.start.abs_diff(last.start);
        let near = !last.is_empty() && apart <= NEAR_PAGES;
        self.is_near = near || pages.len() > FEW_PAGES;
    }

    /// These pages of the local copy are not what they were, or count as present.
    pub fn leave(&mut self, pages: PageRange) {
        if !self.pages.intersects(pages) {
            return;
        }
        self.pages.remove(pages);
        self.comparing.remove(pages);
        for compared in self.under_way.values_mut() {
            compared.remove(pages);
        }
    }

    /// The first pages in `scope` that are not being compared: `pages_max` at most, in `runs_max` runs at most.
    pub fn next_in(&self, scope: PageRange, pages_max: u64, runs_max: usize) -> Vec<PageRange> {
        let mut room = pages_max.max(1);
        let mut next = Vec::new();
        let idle = |run| self.comparing.gaps_in(run);
        for run in self.pages.runs_in(scope).flat_map(idle).take(runs_max) {
            let run = PageRange::new(run.start, run.end.min(run.start + room));
            next.push(run);
            room -= run.len();
            if room == 0 {
                break;
            }
        }
        next
    }

    pub fn begin(&mut self, id: PullId, pages: &[PageRange]) {
        pages.iter().for_each(|&run| self.comparing.insert(run));
        self.under_way.insert(id, pages.iter().copied().collect());
    }

    /// Ends a comparison: the pages of it that are still old.
    pub fn end(&mut self, id: PullId) -> Option<PageSet> {
        let pages = self.under_way.remove(&id)?;
        pages.runs().for_each(|run| self.comparing.remove(run));
        Some(pages)
    }
}

impl Replica {
    /// The local copy holds bytes of these pages that may be the authority's. Counts for those that are absent.
    pub fn handle_old(&mut self, pages: &PageSet) {
        let known = PageRange::new(0, pages_for(self.base_size));
        for run in pages.runs_in(known) {
            for absent in self.present.gaps_in(run) {
                self.pulls.old.pages.insert(absent);
            }
        }
    }

    /// Compare what is old in `range`, and pull what is found to be another one; nobody waits.
    pub fn handle_compare(&mut self, range: ByteRange) {
        let pages = range.pages_touched();
        let old: Vec<PageRange> = self.pulls.old.pages.runs_in(pages).collect();
        old.into_iter().for_each(|run| self.pulls.want(run));
    }

    /// The next comparison to make, of at most `bytes_max` bytes (at least a page) in `runs_max` runs.
    pub fn poll_comparison(&mut self, bytes_max: u64, runs_max: usize) -> Option<Comparison> {
        let (id, pages) = self.pulls.compare(bytes_max / PAGE_BYTES, runs_max)?;
        let id = ComparisonId(id);
        Some(Comparison { id, pages })
    }

    /// The authority's bytes in `range`, as it read them at `at` or later, are those that the local copy has held
    /// since the comparison began. Only pages that `range` covers whole (or up to the region's size) count: tell
    /// the size that came with the answer first. Returns how many pages are present by that.
    pub fn handle_confirmed(
        &mut self,
        comparison: ComparisonId,
        at: Tick,
        range: ByteRange,
    ) -> u64 {
        let pages = self.covered(range);
        let Some(compared) = self.pulls.old.under_way.get(&comparison.0) else {
            return 0;
        };
        let mut same: Vec<PageRange> = compared.runs_in(pages).collect();
        if let Some(too_old) = self.stale.too_old(pages, at) {
            let fresh = same.iter().flat_map(|&run| too_old.gaps_in(run));
            same = fresh.collect();
        }
        for &run in &same {
            self.present.insert(run);
            self.touched.add(run);
            self.pulls.arrived(run);
        }
        same.iter().map(PageRange::len).sum()
    }

    /// A comparison has ended.
    pub fn handle_compared(&mut self, comparison: ComparisonId, outcome: Compared) {
        self.pulls.compared(comparison.0, outcome, self.base_size);
        self.stale.expire(self.pulls.oldest());
    }

    /// Pages of the local copy that hold old bytes.
    pub fn old(&self) -> &PageSet {
        &self.pulls.old.pages
    }
}
