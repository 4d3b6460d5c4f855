//! What a caller keeps on record of a region, so that it can go on from there after its own end.
//!
//! The record is a set of present and a set of dirty pages. Every call that may change either notes which pages
//! it has touched; the caller brings the record up to date with them from [`Replica::present`] and
//! [`Replica::unpushed`], in the order that keeps its copy safe: bytes before the note that they are there, the
//! note that they are not before they are gone.

use super::{PageSet, Replica};
use crate::units::{ByteRange, PageRange, pages_for};
use std::time::Instant;

/// Which pages were touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Somebody asks.
    wanted: bool,
    runs: Vec<PageRange>,
}

impl Touched {
    pub fn add(&mut self, pages: PageRange) {
        if !self.wanted || pages.is_empty() {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if pages.start <= last.end && last.start <= pages.end => {
                last.start = last.start.min(pages.start);
                last.end = last.end.max(pages.end);
            }
            _ => self.runs.push(pages),
        }
    }
}

impl Replica {
    /// From here on [`Self::poll_touched`] tells which pages have changed their state.
    pub fn keep_record(&mut self) {
        self.touched.wanted = true;
    }

    /// Pages that may have become present or absent, dirty or clean, since this was asked last. To be asked for
    /// under the same lock as the calls that change them, until `None`.
    pub fn poll_touched(&mut self) -> Option<PageRange> {
        self.touched.runs.pop()
    }

    /// Pages that are here.
    pub fn present(&self) -> &PageSet {
        &self.present
    }

    /// Pages stored and not yet taken by the authority.
    pub fn unpushed(&self) -> &PageSet {
        self.pushes.unpushed()
    }

    /// The local copy has these pages from before, clean ones as the authority has them now. Those of them that
    /// are dirty were stored in a region that reached up to `end`. To be called first of all.
    pub fn handle_restored(&mut self, now: Instant, present: &PageSet, dirty: &PageSet, end: u64) {
        let known = PageRange::new(0, pages_for(self.base_size));
        for run in present.runs_in(known) {
            self.present.insert(run);
            self.touched.add(run);
        }
        let stored = ByteRange::new(0, end.max(self.base_size)).pages_touched();
        for run in dirty.runs_in(stored) {
            self.handle_stored(now, run.bytes_below(end.max(self.base_size)));
        }
    }
}
