//! Where the region ends: at the authority, with what is stored here, and as far as can be known.
//!
//! ```text
//! 0                     base_size        size                   reach
//! ├─────────────────────────┼──────────────┼ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─┤
//!  absent pages are pulled    stored here,   others have changed something
//!                             else zero      here: asked for before it is read
//! ```
//!
//! In the local copy all is zero past `base_size` that is not stored here, also of absent pages. So nothing
//! old comes to light when the region grows again.

use super::{PAGE_BYTES, REGION_BYTES_MAX, Replica, Tick};
use crate::units::{ByteRange, PageRange, pages_for};

impl Replica {
    /// The authority's size, from an answer made at `at`; an older one than known is ignored. Pages
    /// that a growing region gains are absent, unless dirty. What is dirty beyond the end of a region
    /// that shrinks stays, and will extend it again.
    pub fn handle_size(&mut self, at: Tick, size: u64, zeroed: &mut Vec<ByteRange>) {
        if at >= self.base_at {
            self.base_at = at;
            self.set_base_size(size.min(REGION_BYTES_MAX), at, zeroed);
            self.settle_doubt(at);
        }
    }

    /// The authority has set the size on this replica's request (a truncation), at `at`. Pages past
    /// `size` are forgotten, dirty ones too: no push of them may have been under way when the request
    /// was sent.
    pub fn handle_resized(
        &mut self,
        at: Tick,
        size: u64,
        dropped: &mut Vec<PageRange>,
        zeroed: &mut Vec<ByteRange>,
    ) {
        let size = size.min(REGION_BYTES_MAX);
        let size_before = self.size();
        let tail = PageRange::new(size / PAGE_BYTES, u64::MAX);
        self.mark_stale(tail, at.max(self.pushed_at));
        self.pulls.old.leave(tail);
        if at >= self.base_at {
            (self.base_at, self.base_size) = (at, size);
        } else {
            // What is here of the page it ended in may be from after, and lose its end below.
            self.drop_clean(tail, at, dropped);
        }
        self.past.forget(ByteRange::new(size, u64::MAX));
        self.past.forget(ByteRange::new(0, self.base_size));
        let end = size.min(self.size());
        let beyond = PageRange::new(pages_for(end), u64::MAX);
        self.pushes.forget(beyond);
        self.present.remove(beyond);
        self.touched.add(beyond);
        if end < size_before {
            zeroed.push(ByteRange::new(end, pages_for(size_before) * PAGE_BYTES));
        }
        self.settle_doubt(at);
    }

    /// One past the last byte that is to be had from the authority, as far as known.
    pub(super) fn pull_end(&self) -> u64 {
        self.base_size.max(self.doubt.map_or(0, |(_, end)| end))
    }

    /// Others have changed `range` at `at`: the region may reach further than known, or than an answer
    /// from before will say.
    pub(super) fn doubt_size(&mut self, at: Tick, range: ByteRange) {
        if at <= self.base_at {
            return;
        }
        let end = range.end.min(REGION_BYTES_MAX);
        let (newest, furthest) = self.doubt.unwrap_or_default();
        self.doubt = Some((newest.max(at), furthest.max(end)));
    }

    /// The size is known as of `at`: nobody wants or waits for what is past the end.
    pub(super) fn settle_doubt(&mut self, at: Tick) {
        self.doubt.take_if(|(newest, _)| *newest <= at);
        let past_the_size = PageRange::new(pages_for(self.base_size), u64::MAX);
        self.pulls.do_not_want(past_the_size);
        let past_the_end = PageRange::new(pages_for(self.pull_end()), u64::MAX);
        self.pulls.arrived(past_the_end);
    }

    /// The authority's size has changed by `at`.
    pub(super) fn set_base_size(&mut self, size: u64, at: Tick, zeroed: &mut Vec<ByteRange>) {
        let size_before = self.size();
        let old_end = pages_for(self.base_size);
        let grows = size >= self.base_size;
        self.base_size = size;
        if grows {
            return self.past.forget(ByteRange::new(0, size));
        }
        // Pages that are to be pushed will extend it again; the one it ends in if it is on its way.
        for run in self.pushes.will_reach(size) {
            self.past.store(run.bytes_below(size_before), size);
        }
        let changed = PageRange::new(size / PAGE_BYTES, u64::MAX);
        self.mark_stale(changed, at);
        self.pulls.old.leave(changed);
        // From the page on that it ends in: its rest is zero as well, also while it is absent.
        let tail = PageRange::new(size / PAGE_BYTES, old_end);
        let clean: Vec<PageRange> = self.pushes.unpushed().gaps_in(tail).collect();
        self.clear_past_the_end(&clean, size_before, zeroed);
    }

    /// Of these clean pages, and of the page that the region ends in now, what is past the end is zero.
    pub(super) fn clear_past_the_end(
        &mut self,
        clean: &[PageRange],
        size_before: u64,
        zeroed: &mut Vec<ByteRange>,
    ) {
        let past_the_end = PageRange::new(pages_for(self.base_size), u64::MAX);
        for run in clean {
            let past = run.intersect(past_the_end);
            self.present.remove(past);
            self.touched.add(past);
            let bytes = run.bytes_below(size_before);
            if self.base_size < bytes.end {
                let start = bytes.start.max(self.base_size);
                zeroed.push(ByteRange::new(start, bytes.end));
            }
        }
        let size = self.size();
        let rest = ByteRange::new(size, pages_for(size) * PAGE_BYTES);
        if size < size_before && self.pushes.unpushed().intersects(rest.pages_touched()) {
            zeroed.push(rest);
        }
    }
}
