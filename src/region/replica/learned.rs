//! What an earlier use of the region has touched, to be brought in that order.
//!
//! A fault on one of these runs moves the place from which on they are brought to just behind it: a program that is
//! at one step wants the next one. What was passed over comes when the end is reached.

use crate::region::Order;
use crate::units::PageRange;
use std::collections::BTreeSet;

/// Runs that have not been asked for.
#[derive(Debug)]
pub(super) struct Learned {
    /// In the order they were touched.
    runs: Vec<PageRange>,
    /// Their places, by where they are in the region.
    by_start: Vec<u32>,
    /// Places of those still to come.
    pending: BTreeSet<u32>,
    /// Where to go on.
    next: u32,
}

impl Learned {
    pub fn new(order: &Order) -> Learned {
        let runs: Vec<PageRange> = order.runs().collect();
        let places = 0..runs.len() as u32;
        let mut by_start: Vec<u32> = places.clone().collect();
        by_start.sort_unstable_by_key(|&place| runs[place as usize].start);
        Learned {
            runs,
            by_start,
            pending: places.collect(),
            next: 0,
        }
    }

    /// Somebody has come to these pages.
    pub fn follow(&mut self, pages: PageRange) {
        let start = |&place: &u32| self.runs[place as usize].start;
        let behind = self
            .by_start
            .partition_point(|place| start(place) < pages.end);
        let Some(&place) = behind.checked_sub(1).and_then(|at| self.by_start.get(at)) else {
            return;
        };
        if pages.start < self.runs[place as usize].end {
            self.next = place;
        }
    }

    /// The next part that is to be brought, of what `absent` says is neither here nor under way. It
    /// stays the next one until it is one of these.
    pub fn next(&mut self, absent: impl Fn(PageRange) -> Option<PageRange>) -> Option<PageRange> {
        loop {
            let ahead = self.pending.range(self.next..).next();
            let place = *ahead.or_else(|| self.pending.first())?;
            self.next = place;
            match absent(self.runs[place as usize]) {
                Some(run) => return Some(run),
                None => self.pending.remove(&place),
            };
        }
    }
}
