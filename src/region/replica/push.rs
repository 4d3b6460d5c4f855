//! What is stored here and not yet taken by the authority, and who waits for that.

use super::{Failure, FlushId, PushId};
use crate::region::{PageSet, Tick};
use crate::units::{PAGE_BYTES, PageRange, pages_for};
use std::collections::{BTreeMap, VecDeque};

/// A push under way.
#[derive(Debug)]
pub(super) struct Pushing {
    /// Its pages, without those forgotten since.
    pub pages: PageSet,
    /// One past its last byte.
    pub end: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Pages of it that somebody else has changed.
    changed: PageSet,
    /// The newest such change since it began.
    pub changed_at: Tick,
}

impl Pushing {
    /// Pages of which the authority has something else now, if it took this push as the change `at`: what
    /// others have changed later, and the page that it ends in the midst of, if the rest has changed.
    pub fn outdated(&self, at: Tick, below: PageRange) -> impl Iterator<Item = PageRange> {
        let last = partial_page(self.end).unwrap_or(PageRange::new(0, 0));
        let outdated = if at <= self.changed_at { below } else { last };
        self.changed.runs_in(outdated.intersect(below))
    }
}

/// Somebody waits for these pages.
#[derive(Debug)]
struct Flush {
    /// Still to be pushed.
    dirty: PageSet,
    /// In pushes under way that have the content of when the flush began, or newer.
    pushing: PageSet,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    /// Stored since a push of them began, if one did.
    pub dirty: PageSet,
    /// In one of `under_way`, and in one only.
    pub pushing: PageSet,
    /// Either or both: what the authority does not have.
    unpushed: PageSet,
    /// Dirty pages that somebody else has changed. A push of all of such a page settles that, but one that
    /// ends in the midst of it leaves what the others have added behind that end.
    changed: PageSet,
    under_way: BTreeMap<PushId, Pushing>,
    pushes_made: u64,
    flushes: BTreeMap<FlushId, Flush>,
    flushes_made: u64,
    flushed: VecDeque<(FlushId, Result<(), Failure>)>,
}

impl Pushes {
    /// Pages past byte `size`: those dirty, and those under way, also if they are past it only in part.
    pub fn will_reach(&self, size: u64) -> impl Iterator<Item = PageRange> {
        let dirty = PageRange::new(pages_for(size), u64::MAX);
        let pushing = PageRange::new(size / PAGE_BYTES, u64::MAX);
        let dirty = self.dirty.runs_in(dirty);
        dirty.chain(self.pushing.runs_in(pushing))
    }

    /// Pages that the authority does not have.
    pub fn unpushed(&self) -> &PageSet {
        &self.unpushed
    }

    /// These pages are being stored.
    pub fn store(&mut self, pages: PageRange) {
        self.dirty.insert(pages);
        self.unpushed.insert(pages);
    }

    /// Bytes of pushes under way.
    pub fn under_way_bytes(&self) -> u64 {
        self.under_way.values().map(|push| push.bytes).sum()
    }

    /// The pages of the next push, ascending.
    pub fn take(&mut self, bytes_max: u64, extents_max: usize) -> Option<(PushId, Vec<PageRange>)> {
        let mut room = (bytes_max / PAGE_BYTES).max(1);
        let mut extents: Vec<PageRange> = Vec::new();
        let idle = |run| self.pushing.gaps_in(run);
        for run in self.dirty.runs().flat_map(idle).take(extents_max) {
            let run = PageRange::new(run.start, run.end.min(run.start + room));
            extents.push(run);
            room -= run.len();
            if room == 0 {
                break;
            }
        }
        if extents.is_empty() {
            return None;
        }
        self.pushes_made += 1;
        Some((PushId(self.pushes_made), extents))
    }

    /// A push of these pages begins; its last byte is the one before `end`.
    pub fn begin(&mut self, id: PushId, extents: &[PageRange], bytes: u64, end: u64) {
        let changed = |run: &PageRange| self.changed.runs_in(*run).collect::<Vec<_>>();
        let changed: PageSet = extents.iter().flat_map(changed).collect();
        for &run in extents {
            self.changed.remove(run);
            self.dirty.remove(run);
            self.pushing.insert(run);
            for flush in self.flushes.values_mut() {
                move_pages(&mut flush.dirty, &mut flush.pushing, run);
            }
        }
        let push = Pushing {
            pages: extents.iter().copied().collect(),
            end,
            bytes,
            changed,
            changed_at: Tick(0),
        };
        self.under_way.insert(id, push);
    }

    /// Somebody else has changed `pages` at `at`.
    pub fn changed(&mut self, pages: PageRange, at: Tick) {
        for run in self.dirty.runs_in(pages) {
            self.changed.insert(run);
        }
        if !self.pushing.intersects(pages) {
            return;
        }
        for push in self.under_way.values_mut() {
            for run in push.pages.runs_in(pages) {
                push.changed.insert(run);
                push.changed_at = push.changed_at.max(at);
            }
        }
    }

    /// A push has been taken by the authority.
    pub fn acknowledged(&mut self, id: PushId) -> Option<Pushing> {
        let push = self.under_way.remove(&id)?;
        self.keep_changed(&push);
        for run in push.pages.runs() {
            self.pushing.remove(run);
            for clean in self.dirty.gaps_in(run) {
                self.unpushed.remove(clean);
            }
            for flush in self.flushes.values_mut() {
                flush.pushing.remove(run);
            }
        }
        self.end_flushes();
        Some(push)
    }

    /// A push has failed: its pages are dirty again.
    pub fn failed(&mut self, id: PushId, failure: Failure) {
        let Some(push) = self.under_way.remove(&id) else {
            return;
        };
        let mut refused = Vec::new();
        for run in push.pages.runs() {
            self.pushing.remove(run);
            self.dirty.insert(run);
            for (&flush, waits) in &mut self.flushes {
                if failure != Failure::Link && waits.pushing.intersects(run) {
                    refused.push(flush);
                }
                move_pages(&mut waits.pushing, &mut waits.dirty, run);
            }
        }
        self.keep_changed(&push);
        for flush in refused {
            if self.flushes.remove(&flush).is_some() {
                self.flushed.push_back((flush, Err(failure)));
            }
        }
    }

    /// The link broke.
    pub fn all_failed(&mut self) {
        while let Some((&id, _)) = self.under_way.first_key_value() {
            self.failed(id, Failure::Link);
        }
    }

    /// Nobody wants these pages pushed any more.
    pub fn forget(&mut self, pages: PageRange) {
        self.dirty.remove(pages);
        self.pushing.remove(pages);
        self.unpushed.remove(pages);
        for push in self.under_way.values_mut() {
            push.pages.remove(pages);
            push.changed.remove(pages);
        }
        self.changed.remove(pages);
        for flush in self.flushes.values_mut() {
            flush.dirty.remove(pages);
            flush.pushing.remove(pages);
        }
        self.end_flushes();
    }

    /// See [`super::Replica::handle_flush`].
    pub fn flush(&mut self) -> Option<FlushId> {
        if self.unpushed.is_empty() {
            return None;
        }
        let mut pushing = self.pushing.clone();
        self.dirty.runs().for_each(|run| pushing.remove(run));
        let dirty = self.dirty.clone();
        self.flushes_made += 1;
        let id = FlushId(self.flushes_made);
        self.flushes.insert(id, Flush { dirty, pushing });
        Some(id)
    }

    /// Whether somebody waits for pushes.
    pub fn is_awaited(&self) -> bool {
        !self.flushes.is_empty()
    }

    pub fn poll_flushed(&mut self) -> Option<(FlushId, Result<(), Failure>)> {
        self.flushed.pop_front()
    }

    /// What is dirty of a push that has ended is as changed as it was.
    fn keep_changed(&mut self, push: &Pushing) {
        for run in push.changed.runs() {
            for dirty in self.dirty.runs_in(run) {
                self.changed.insert(dirty);
            }
        }
    }

    fn end_flushes(&mut self) {
        let (flushes, flushed) = (&mut self.flushes, &mut self.flushed);
        flushes.retain(|&id, flush| {
            let waits = !flush.dirty.is_empty() || !flush.pushing.is_empty();
            if !waits {
                flushed.push_back((id, Ok(())));
            }
            waits
        });
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.dirty.is_empty()
            && self.pushing.is_empty()
            && self.unpushed.is_empty()
            && self.changed.is_empty()
            && self.under_way.is_empty()
            && self.flushes.is_empty()
            && self.flushed.is_empty()
    }
}

/// The page in the midst of which `end` is.
fn partial_page(end: u64) -> Option<PageRange> {
    let page = end / PAGE_BYTES;
    (!end.is_multiple_of(PAGE_BYTES)).then(|| PageRange::new(page, page + 1))
}

/// Moves what `from` has of `pages` to `to`.
fn move_pages(from: &mut PageSet, to: &mut PageSet, pages: PageRange) {
    let runs: Vec<PageRange> = from.runs_in(pages).collect();
    for run in runs {
        from.remove(run);
        to.insert(run);
    }
}
