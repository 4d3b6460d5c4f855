//! The page bitmaps of a map file: which pages of the copy are present, and which of those are dirty.
//!
//! Pages are in groups of 32,768 (128 MiB of the copy), whose bits fill one page of the map each: one for present,
//! one for dirty. Pages of the map that were never needed are holes. A bit for each group says that all its
//! pages are present, whatever its present page says, so that a terabyte of zeroes costs a kilobyte.
//!
//! What is stored here is in the file at once; the order of the stores is chosen so that the process may end between
//! any two. Disk space is allotted before the first store in a page of the map.

use super::map::{FULL_AT, GROUPS_AT, GROUPS_MAX};
use crate::region::PageSet;
use crate::sys::MappedWords;
use crate::units::PageRange;
use std::io;

/// Pages in a group.
pub(super) const GROUP_PAGES: u64 = 32_768;
/// Words in a page of the map.
const PAGE_WORDS: u64 = 512;

/// Which of the two bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Present,
    Dirty,
}

/// The bitmaps of a map file.
#[derive(Debug)]
pub(super) struct Bits {
    pub words: MappedWords,
    /// Of each group, whether its pages of the map have disk space: present, dirty.
    allotted: Vec<[bool; 2]>,
}

/// The first word of a group's page of the map.
fn page_at(group: u64, kind: Kind) -> u64 {
    GROUPS_AT + group * 2 * PAGE_WORDS + if kind == Kind::Dirty { PAGE_WORDS } else { 0 }
}

/// Of a run of bits within one group: each word with the bits of it that are in the run.
fn masks(run: PageRange) -> impl Iterator<Item = (u64, u64)> {
    (run.start / 64..run.end.div_ceil(64)).map(move |word| {
        let from = run.start.max(word * 64) - word * 64;
        let to = run.end.min(word * 64 + 64) - word * 64;
        let below = |bit: u64| if bit == 64 { u64::MAX } else { (1 << bit) - 1 };
        (word, below(to) & !below(from))
    })
}

impl Bits {
    /// The bitmaps in a file that is as long as it says.
    pub fn new(words: MappedWords) -> Bits {
        let mut bits = Bits {
            words,
            allotted: Vec::new(),
        };
        bits.allotted.resize(bits.groups() as usize, [false; 2]);
        let mut from = GROUPS_AT;
        while let Some((start, end)) = bits.words.allotted(from) {
            let pages = start.max(GROUPS_AT) - GROUPS_AT..end.max(GROUPS_AT) - GROUPS_AT;
            for page in pages.start / PAGE_WORDS..pages.end.div_ceil(PAGE_WORDS) {
                if let Some(group) = bits.allotted.get_mut((page / 2) as usize) {
                    group[(page % 2) as usize] = true;
                }
            }
            from = end.max(from + 1);
        }
        bits
    }

    /// Groups there is room for.
    fn groups(&self) -> u64 {
        (self.words.len().saturating_sub(GROUPS_AT) / (2 * PAGE_WORDS)).min(GROUPS_MAX)
    }

    /// Makes room for `pages` pages.
    ///
    /// # Errors
    /// `FileTooLarge` past what a map can hold; from `ftruncate(2)`, `mmap(2)`.
    pub fn extend(&mut self, pages: u64) -> io::Result<()> {
        let groups = pages.div_ceil(GROUP_PAGES);
        if groups > GROUPS_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if groups > self.groups() {
            // By half as much again, so that a file that grows does not need it each time.
            let groups = (groups + groups / 2).min(GROUPS_MAX);
            self.words.extend(GROUPS_AT + groups * 2 * PAGE_WORDS)?;
            self.allotted.resize(groups as usize, [false; 2]);
        }
        Ok(())
    }

    /// Allots disk space for the bits of these pages.
    ///
    /// # Errors
    /// As [`Bits::extend`]; from `fallocate(2)`.
    pub fn reserve(&mut self, pages: PageRange, kind: Kind) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        self.extend(pages.end)?;
        for group in pages.start / GROUP_PAGES..pages.end.div_ceil(GROUP_PAGES) {
            if !self.has(group, kind) {
                self.allot(group, kind)?;
            }
        }
        Ok(())
    }

    fn has(&self, group: u64, kind: Kind) -> bool {
        let allotted = self.allotted.get(group as usize);
        allotted.is_some_and(|allotted| allotted[usize::from(kind == Kind::Dirty)])
    }

    fn allot(&mut self, group: u64, kind: Kind) -> io::Result<()> {
        self.words.reserve(page_at(group, kind), PAGE_WORDS)?;
        if let Some(allotted) = self.allotted.get_mut(group as usize) {
            allotted[usize::from(kind == Kind::Dirty)] = true;
        }
        Ok(())
    }

    fn is_full(&self, group: u64) -> bool {
        self.words.load(FULL_AT + group / 64) >> (group % 64) & 1 == 1
    }

    /// The groups that `pages` touches, each with the run within it.
    fn within(&self, pages: PageRange) -> impl Iterator<Item = (u64, PageRange)> + use<> {
        let pages = pages.intersect(PageRange::new(0, self.groups() * GROUP_PAGES));
        (pages.start / GROUP_PAGES..pages.end.div_ceil(GROUP_PAGES)).map(move |group| {
            let first = group * GROUP_PAGES;
            let start = pages.start.max(first) - first;
            (
                group,
                PageRange::new(start, pages.end.min(first + GROUP_PAGES) - first),
            )
        })
    }

    /// Notes that pages are present, or dirty. On a full disk those are left out whose bits are not reserved:
    /// they will be pulled once more.
    pub fn set(&mut self, pages: PageRange, kind: Kind) {
        let _ = self.extend(pages.end);
        for (group, run) in self.within(pages) {
            if kind == Kind::Present && self.is_full(group) {
                continue;
            }
            if kind == Kind::Present && run.len() == GROUP_PAGES {
                self.words.set_bits(FULL_AT + group / 64, 1 << (group % 64));
            } else if self.has(group, kind) || self.allot(group, kind).is_ok() {
                let page = page_at(group, kind);
                masks(run).for_each(|(word, mask)| self.words.set_bits(page + word, mask));
            }
        }
    }

    /// Notes that pages are not present, or not dirty.
    pub fn clear(&mut self, pages: PageRange, kind: Kind) {
        for (group, run) in self.within(pages) {
            if kind == Kind::Present && self.is_full(group) {
                self.spell_out(group, run);
            }
            if self.has(group, kind) {
                let page = page_at(group, kind);
                masks(run).for_each(|(word, mask)| self.words.clear_bits(page + word, mask));
            }
        }
    }

    /// A group that is present as a whole will not be: its bits count from here on. `but`: not of these pages.
    fn spell_out(&mut self, group: u64, but: PageRange) {
        let whole = but.len() == GROUP_PAGES;
        if !whole && !self.has(group, Kind::Present) {
            // On a full disk it is noted as absent: it will be pulled once more. Nothing of it is dirty,
            // for then its bits had been reserved.
            let _ = self.allot(group, Kind::Present);
        }
        if self.has(group, Kind::Present) {
            let all = if whole { 0 } else { u64::MAX };
            let page = page_at(group, Kind::Present);
            (page..page + PAGE_WORDS).for_each(|at| self.words.store(at, all));
        }
        self.words
            .clear_bits(FULL_AT + group / 64, 1 << (group % 64));
    }

    /// All pages noted.
    pub fn read(&self, kind: Kind) -> PageSet {
        let mut set = PageSet::new();
        for group in 0..self.groups() {
            let first = group * GROUP_PAGES;
            if kind == Kind::Present && self.is_full(group) {
                set.insert(PageRange::new(first, first + GROUP_PAGES));
            } else if self.has(group, kind) {
                let page = page_at(group, kind);
                for at in 0..PAGE_WORDS {
                    let word = self.words.load(page + at);
                    runs_of(word).for_each(|(start, end)| {
                        let first = first + at * 64;
                        set.insert(PageRange::new(first + start, first + end));
                    });
                }
            }
        }
        set
    }
}

/// The runs of set bits in a word.
fn runs_of(mut word: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let zeroes = u64::from(word.trailing_zeros());
        word >>= zeroes;
        let ones = u64::from(word.trailing_ones());
        word = word.checked_shr(ones as u32).unwrap_or(0);
        let start = at + zeroes;
        at = start + ones;
        Some((start, at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(folder: &std::path::Path) -> Bits {
        let mut words = MappedWords::open(&folder.join("map")).unwrap();
        words.extend(GROUPS_AT).unwrap();
        words.reserve(0, GROUPS_AT).unwrap();
        Bits::new(words)
    }

    fn range() -> impl Strategy<Value = PageRange> {
        let whole =
            (0..4u64, 1..4u64).prop_map(|(start, len)| (start * GROUP_PAGES, len * GROUP_PAGES));
        let short = (0..5 * GROUP_PAGES, 1..200u64);
        let long = (0..5 * GROUP_PAGES, 1..2 * GROUP_PAGES);
        prop_oneof![whole, short, long].prop_map(|(start, len)| PageRange::new(start, start + len))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Against a set of pages: what is set and cleared is found, now and when opened anew.
        #[test]
        fn is_a_set(steps in prop::collection::vec((any::<bool>(), any::<bool>(), range()), 1..20)) {
            let folder = tempfile::tempdir().unwrap();
            let mut bits = bits(folder.path());
            let mut models = [PageSet::new(), PageSet::new()];
            for (dirty, set, range) in steps {
                let kind = if dirty { Kind::Dirty } else { Kind::Present };
                let model = &mut models[usize::from(dirty)];
                if set {
                    bits.set(range, kind);
                    model.insert(range);
                } else {
                    bits.clear(range, kind);
                    model.remove(range);
                }
                prop_assert_eq!(&bits.read(kind), &*model);
            }
            drop(bits);
            let again = Bits::new(MappedWords::open(&folder.path().join("map")).unwrap());
            prop_assert_eq!(&again.read(Kind::Present), &models[0]);
            prop_assert_eq!(&again.read(Kind::Dirty), &models[1]);
        }
    }

    #[test]
    fn a_terabyte_of_zeroes_costs_next_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut bits = bits(folder.path());
        let before = bits.words.allocated_bytes().unwrap();
        let all = PageRange::new(0, 1 << 28);
        bits.extend(all.end).unwrap();
        bits.set(all, Kind::Present);
        assert_eq!(bits.read(Kind::Present).len(), 1 << 28);
        assert_eq!(bits.words.allocated_bytes().unwrap(), before);
        bits.clear(PageRange::new(7, 8), Kind::Present);
        assert_eq!(bits.read(Kind::Present).len(), (1 << 28) - 1);
        bits.clear(PageRange::new(0, u64::MAX), Kind::Present);
        bits.clear(PageRange::new(0, u64::MAX), Kind::Dirty);
        assert!(bits.read(Kind::Present).is_empty());
        assert!(bits.words.allocated_bytes().unwrap() - before <= 8192);
    }
}
