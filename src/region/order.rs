//! In which order the parts of a region were first touched.
//!
//! Runs of pages that do not overlap, in the order in which they came; one that begins where the newest one ends
//! joins it, so a reading from end to end is a single run. What is in the list stays where it is: pages that were brought
//! ahead because of it are not touched in a way that anybody sees, so being touched cannot be asked of an entry.
//! An entry that no program needs any more does no harm but to be brought a little early, for whoever
//! touches another part goes on from there. It leaves when the list is full: the oldest of earlier uses first. What
//! the present use has touched stays, and beyond the limit nothing is added.

use super::PageSet;
use crate::units::{PageRange, REGION_BYTES_MAX, pages_for};
use std::collections::VecDeque;

/// Runs of one region that are remembered, at most.
pub const ORDER_RUNS_MAX: usize = 1 << 15;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Order {
    runs: VecDeque<PageRange>,
    /// All of them.
    pages: PageSet,
    /// So many at the front are of earlier uses.
    old: usize,
}

impl Order {
    /// These pages were touched. True if that adds something.
    pub fn note(&mut self, touched: PageRange) -> bool {
        let mut rest = touched.intersect(PageRange::new(0, pages_for(REGION_BYTES_MAX)));
        let mut added = false;
        // One by one: in a full list the first is the last that is looked for.
        while let Some(run) = self.first_new(rest) {
            let joins = self.old < self.runs.len();
            if let Some(last) = self.runs.back_mut().filter(|_| joins)
                && last.end == run.start
            {
                last.end = run.end;
            } else if self.has_room() {
                self.runs.push_back(run);
            } else {
                break;
            }
            self.pages.insert(run);
            added = true;
            rest = PageRange::new(run.end, rest.end);
        }
        added
    }

    /// The first part of these pages that is not in the list.
    fn first_new(&self, pages: PageRange) -> Option<PageRange> {
        self.pages.gaps_in(pages).next()
    }

    /// Makes room for one more.
    fn has_room(&mut self) -> bool {
        if self.runs.len() < ORDER_RUNS_MAX {
            return true;
        }
        if self.old == 0 {
            return false;
        }
        self.old -= 1;
        if let Some(oldest) = self.runs.pop_front() {
            self.pages.remove(oldest);
        }
        true
    }

    /// What is in the list is of an earlier use than what comes.
    pub fn begin_use(&mut self) {
        self.old = self.runs.len();
    }

    /// Puts a list from before this one in front of it.
    pub fn put_before(&mut self, earlier: Order) {
        let mut own = std::mem::replace(self, earlier);
        let new = own.runs.split_off(own.old);
        for runs in [own.runs, new] {
            self.begin_use();
            for run in runs {
                self.note(run);
            }
        }
    }

    /// The runs, first touched first.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = PageRange> + '_ {
        self.runs.iter().copied()
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

impl FromIterator<PageRange> for Order {
    fn from_iter<I: IntoIterator<Item = PageRange>>(touched: I) -> Order {
        let mut order = Order::default();
        for run in touched {
            order.note(run);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn page(at: u64) -> PageRange {
        PageRange::new(at, at + 1)
    }

    fn list(order: &Order) -> Vec<(u64, u64)> {
        order.runs().map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn what_was_touched_first_stays_first() {
        let mut order = Order::default();
        assert!(order.note(PageRange::new(10, 12)) && order.note(page(5)));
        assert!(order.note(page(6)), "joins 5");
        assert!(!order.note(page(10)) && !order.note(PageRange::new(5, 7)));
        assert!(order.note(PageRange::new(4, 13)));
        assert_eq!(list(&order), [(10, 12), (5, 7), (4, 5), (7, 10), (12, 13)]);
        let whole = PageRange::new(0, u64::MAX);
        assert!(order.note(whole) && !order.note(whole));
    }

    #[test]
    fn a_reading_from_end_to_end_is_one_run() {
        let reads = (0..10_000).map(|i| PageRange::new(i * 32, i * 32 + 32));
        assert_eq!(list(&reads.collect()), [(0, 320_000)]);
    }

    #[test]
    fn a_full_list_loses_what_is_oldest_and_keeps_what_is_of_this_use() {
        let far = |i: usize| page(i as u64 * 2);
        let mut order: Order = (0..ORDER_RUNS_MAX).map(far).collect();
        assert!(!order.note(far(ORDER_RUNS_MAX)), "all of one use");
        order.begin_use();
        assert!(order.note(far(ORDER_RUNS_MAX)) && order.note(far(ORDER_RUNS_MAX + 1)));
        assert_eq!(order.len(), ORDER_RUNS_MAX);
        assert_eq!(order.runs().next(), Some(far(2)));
        assert!(order.note(far(0)), "is not in the list any more");
    }

    #[test]
    fn lists_are_joined() {
        let mut order: Order = [page(1), page(2)].into_iter().collect();
        order.begin_use();
        order.note(page(20));
        order.put_before([page(9), page(2), page(30)].into_iter().collect());
        assert_eq!(list(&order), [(9, 10), (2, 3), (30, 31), (1, 2), (20, 21)]);
        order.note(page(21));
        assert_eq!(order.runs().last(), Some(PageRange::new(20, 22)));
    }

    proptest! {
        /// Against the obvious: each page is there once, in the order of its first touch.
        #[test]
        fn is_an_order(touches in prop::collection::vec((0..60u64, 0..9u64), 0..80)) {
            let mut order = Order::default();
            let (mut seen, mut model) = (HashSet::new(), Vec::new());
            for (start, len) in touches {
                let run = PageRange::new(start, start + len);
                let new: Vec<u64> = (run.start..run.end).filter(|page| seen.insert(*page)).collect();
                prop_assert_eq!(order.note(run), !new.is_empty());
                model.extend(new);
            }
            let pages: Vec<u64> = order.runs().flat_map(|run| run.start..run.end).collect();
            prop_assert_eq!(pages, model);
        }
    }
}
