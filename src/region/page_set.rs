//! A set of pages, kept as runs: its memory is by the number of runs, not by their length.

use crate::units::PageRange;

/// A set of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    /// Start of each run → its end. Runs do not touch.
    runs: std::collections::BTreeMap<u64, u64>,
    /// Pages in all runs.
    len: u64,
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> PageSet {
        PageSet {
            runs: std::collections::BTreeMap::new(),
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
    /// Adds pages.
    pub fn insert(&mut self, _range: PageRange) {
        unimplemented!()
    }
    /// Takes pages out.
    pub fn remove(&mut self, _range: PageRange) {
        unimplemented!()
    }
    /// Whether every page of `range` is in it.
    pub fn contains_all(&self, _range: PageRange) -> bool {
        unimplemented!()
    }
    /// Whether any page of `range` is in it.
    pub fn intersects(&self, _range: PageRange) -> bool {
        unimplemented!()
    }
    /// The runs in `range`, clipped to it, ascending.
    pub fn runs_in(&self, _range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        std::iter::empty()
    }
    /// The runs of `range` that are not in the set, ascending.
    pub fn gaps_in(&self, _range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        std::iter::empty()
    }
    /// All runs, ascending.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.runs
            .iter()
            .map(|(&start, &end)| PageRange::new(start, end))
    }
}
