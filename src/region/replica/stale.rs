//! Which answers under way are too old for which pages.
//!
//! A page that is dropped, or that changes at the authority while it is absent, may be in the answer
//! to a pull that is under way already. A mark tells from which tick on an answer knows the page as it
//! is now. Pulls that begin later are answered later, so a mark is needed only as long as a pull is
//! under way that began before it.

use super::PullId;
use crate::region::{PageSet, Tick};
use crate::units::PageRange;
use std::collections::VecDeque;

/// Marks kept one by one; beyond, the oldest are merged: at worst something is pulled once more.
const MARKS_MAX: usize = 4096;

#[derive(Debug)]
struct Mark {
    pages: PageRange,
    /// Answers below this tick do not know the pages as they are now.
    at: Tick,
    /// Pulls from this one on began after the mark.
    before: PullId,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// In the order they were made, so `before` never falls.
    marks: VecDeque<Mark>,
}

impl Stale {
    /// Answers below `at` to pulls that begin before `before` are too old for `pages`.
    pub fn mark(&mut self, pages: PageRange, at: Tick, before: PullId) {
        let says_it =
            |last: &Mark| last.before == before && last.at >= at && last.pages.contains(pages);
        if self.marks.back().is_some_and(says_it) || pages.is_empty() {
            return;
        }
        if self.marks.len() == MARKS_MAX {
            let oldest = self.marks.pop_front();
            if let (Some(oldest), Some(next)) = (oldest, self.marks.front_mut()) {
                let start = next.pages.start.min(oldest.pages.start);
                next.pages = PageRange::new(start, next.pages.end.max(oldest.pages.end));
                next.at = next.at.max(oldest.at);
            }
        }
        self.marks.push_back(Mark { pages, at, before });
    }

    /// `oldest` is the oldest pull under way now.
    pub fn expire(&mut self, oldest: Option<PullId>) {
        let over = |mark: &Mark| oldest.is_none_or(|oldest| mark.before <= oldest);
        while self.marks.front().is_some_and(over) {
            self.marks.pop_front();
        }
    }

    /// The pages for which an answer with tick `at` is too old; `None`: there are none.
    pub fn too_old(&self, pages: PageRange, at: Tick) -> Option<PageSet> {
        let marks = self.marks.iter().filter(|mark| at < mark.at);
        let too_old: PageSet = marks.map(|mark| mark.pages.intersect(pages)).collect();
        (!too_old.is_empty()).then_some(too_old)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.marks.len()
    }
}
