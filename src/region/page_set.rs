//! A set of pages, kept as runs: its memory is by the number of runs, not by their length.

use crate::units::PageRange;
use std::collections::BTreeMap;

/// A set of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    /// Start of each run → its end. Runs are not empty and do not touch.
    runs: BTreeMap<u64, u64>,
    /// Pages in all runs.
    len: u64,
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> PageSet {
        PageSet {
            runs: BTreeMap::new(),
            len: 0,
        }
    }

    /// Pages in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Runs in the set: what its memory goes by.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// One past the last page; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, &end)| end)
    }

    /// Adds pages.
    pub fn insert(&mut self, range: PageRange) {
        if range.is_empty() || self.contains_all(range) {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&run_start, &run_end)) = self.runs.range(..=end).next_back() {
            if run_end < start {
                break;
            }
            self.take_run(run_start, run_end);
            start = start.min(run_start);
            end = end.max(run_end);
        }
        self.put_run(start, end);
    }

    /// Takes pages out.
    pub fn remove(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        while let Some((&run_start, &run_end)) = self.runs.range(..range.end).next_back() {
            if run_end <= range.start {
                break;
            }
            self.take_run(run_start, run_end);
            if run_end > range.end {
                self.put_run(range.end, run_end);
            }
            if run_start < range.start {
                self.put_run(run_start, range.start);
                break;
            }
        }
    }

    /// Whether every page of `range` is in it.
    pub fn contains_all(&self, range: PageRange) -> bool {
        range.is_empty()
            || self
                .runs
                .range(..=range.start)
                .next_back()
                .is_some_and(|(_, &end)| range.end <= end)
    }

    /// Whether any page of `range` is in it.
    pub fn intersects(&self, range: PageRange) -> bool {
        !range.is_empty()
            && self
                .runs
                .range(..range.end)
                .next_back()
                .is_some_and(|(_, &end)| range.start < end)
    }

    /// The runs in `range`, clipped to it, ascending.
    pub fn runs_in(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let from = match self.runs.range(..=range.start).next_back() {
            Some((&start, &end)) if range.start < end => start,
            _ => range.start,
        };
        self.runs
            .range(from..range.end)
            .map(move |(&start, &end)| PageRange::new(start, end).intersect(range))
            .filter(|run| !run.is_empty())
    }

    /// The runs of `range` that are not in the set, ascending.
    pub fn gaps_in(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let mut at = range.start;
        self.runs_in(range)
            .map(Some)
            .chain([None])
            .filter_map(move |run| {
                let gap = PageRange::new(at, run.map_or(range.end, |run| run.start));
                at = run.map_or(range.end, |run| run.end);
                (!gap.is_empty()).then_some(gap)
            })
    }

    /// All runs, ascending.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.runs
            .iter()
            .map(|(&start, &end)| PageRange::new(start, end))
    }

    fn take_run(&mut self, start: u64, end: u64) {
        self.runs.remove(&start);
        self.len -= end - start;
    }

    fn put_run(&mut self, start: u64, end: u64) {
        self.runs.insert(start, end);
        self.len += end - start;
    }
}

impl FromIterator<PageRange> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageRange>>(ranges: I) -> PageSet {
        let mut set = PageSet::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Pages that the model looks at.
    const PAGES: u64 = 40;

    fn range() -> impl Strategy<Value = PageRange> {
        (0..PAGES, 0..12u64).prop_map(|(start, len)| PageRange::new(start, start + len))
    }

    fn pages(runs: impl Iterator<Item = PageRange>) -> Vec<u64> {
        runs.inspect(|run| assert!(!run.is_empty()))
            .flat_map(|run| run.start..run.end)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// The set against the obvious one: whatever is put in and taken out, every question is
        /// answered alike, and runs stay apart.
        #[test]
        fn is_a_set(steps in prop::collection::vec((any::<bool>(), range()), 1..40), asked in range()) {
            let (mut set, mut model) = (PageSet::new(), BTreeSet::new());
            for (add, range) in steps {
                if add {
                    set.insert(range);
                    model.extend(range.start..range.end);
                } else {
                    set.remove(range);
                    model.retain(|page| !(range.start..range.end).contains(page));
                }
                prop_assert_eq!(pages(set.runs()), Vec::from_iter(model.iter().copied()));
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.end(), model.last().map_or(0, |last| last + 1));
                let runs: Vec<_> = set.runs().collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert_eq!(set.run_count(), runs.len());
            }
            let within = |page: &u64| model.contains(page);
            let inside: Vec<u64> = (asked.start..asked.end).filter(within).collect();
            let outside: Vec<u64> = (asked.start..asked.end).filter(|page| !within(page)).collect();
            prop_assert_eq!(set.contains_all(asked), outside.is_empty());
            prop_assert_eq!(set.intersects(asked), !inside.is_empty());
            prop_assert_eq!(pages(set.runs_in(asked)), inside);
            prop_assert_eq!(pages(set.gaps_in(asked)), outside);
        }
    }

    #[test]
    fn reaches_to_the_last_page() {
        let mut set = PageSet::new();
        set.insert(PageRange::new(0, u64::MAX));
        set.remove(PageRange::new(7, 8));
        assert_eq!(set.run_count(), 2);
        assert_eq!(set.len(), u64::MAX - 1);
        assert!(set.contains_all(PageRange::new(8, u64::MAX)));
    }
}
