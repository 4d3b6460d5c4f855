//! What a replica knows of one region.
//!
//! ```text
//!               poll_pull               landing                      poll_push
//!     absent ─────────────► under way ───────────► clean    dirty ─────────────► pushing
//!     ▲ ▲  │                    │                  │ ▲ │     ▲ ▲                  │ │ │
//!     │ │  │   failed, too old  │                  │ │ │     │ └──── failed ──────┘ │ │
//!     │ └──┼────────────────────┘                  │ │ │     │                      │ │
//!     └────┼──── invalidate, forget ───────────────┘ │ └─────┤ store                │ │
//!     ▲    └──────────────────────── store ──────────┼───────┘                      │ │
//!     │                                              └───────── acknowledged ───────┘ │
//!     └──────────── acknowledged, but somebody else has changed it since ─────────────┘
//! ```
//!
//! *Present* is all that is not absent: clean, dirty or pushing. A page that is stored while it is
//! being pushed is both dirty and pushing, and the acknowledgement leaves it dirty. Only absent
//! pages take what lands, so no answer, however late, overwrites a store.
//!
//! Pages past the authority's size are zero without anybody's help; only dirty and pushing ones are
//! in `present`. When the end moves down, the caller is told what it has to make zero ([`size`]).
//!
//! An answer under way may be too old for a page that has changed since: see [`stale`]. Absent pages of which
//! the local copy has bytes from before become present by comparing hashes as well: see [`compare`].

mod compare;
mod kept;
mod learned;
mod past;
mod predict;
mod pull;
mod push;
mod size;
mod stale;

pub use compare::{Compared, Comparison, ComparisonId};

use super::{Epoch, Order, PageSet, Tick};
use crate::units::{ByteRange, PAGE_BYTES, PageRange, REGION_BYTES_MAX, pages_for};
use kept::Touched;
use past::Past;
use pull::Pulls;
use push::Pushes;
use stale::Stale;
use std::time::Instant;

/// How a replica pulls.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// Pull what nobody has asked for yet, from the last fault to the end of the region.
    pub background: bool,
    /// The most bytes of background pulls under way at once.
    pub background_bytes_max: u64,
    /// The most bytes of one pull.
    pub pull_bytes_max: u64,
    /// How far a demand pull may be widened ahead of a sequential reader, in bytes.
    pub read_ahead_bytes_max: u64,
}

/// Names a pull of this region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PullId(pub u64);
/// Names a push of this region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PushId(pub u64);
/// Names somebody who waits for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);
/// Names somebody who waits until what is dirty now has been pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlushId(pub u64);

/// Why a pull or push did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The link broke: worth doing again once there is a link.
    Link,
    /// The authority answered with this errno (Linux numbers).
    Refused(i32),
}

/// Whether pages are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// All of them.
    Present,
    /// Not all: this waiter will be woken, once, with the outcome. `Ok`: each page has arrived since;
    /// should one be gone again, fault again.
    Wait(WaiterId),
}

/// A pull to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Its name.
    pub id: PullId,
    /// Whole pages, clipped at the size of the region, or where it may end if others have changed that.
    pub range: ByteRange,
    /// Somebody waits for it.
    pub demand: bool,
}

/// A push to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Its name.
    pub id: PushId,
    /// Whole pages, clipped at the size of the region; ascending, not touching.
    pub extents: Vec<ByteRange>,
}

/// One region at one replica.
///
/// Calls that take pages out of the copy tell how, in up to two lists to which they append:
/// `dropped` pages are absent from now on: drop them from the kernel's cache. `zeroed` bytes are past
/// the end from now on: make them zero in the local copy, under the same lock as the call, and drop
/// them from the kernel's cache.
#[derive(Debug)]
pub struct Replica {
    epoch: Epoch,
    /// The authority's size in bytes, and the tick of the answer that told it.
    base_size: u64,
    base_at: Tick,
    /// Others have changed something since, at this tick, up to here: what is past the size of that has to be
    /// asked for.
    doubt: Option<(Tick, u64)>,
    /// What stores that are not pushed yet have added past the authority's size.
    past: Past,
    /// The newest push acknowledged: an answer at this tick has seen all of them.
    pushed_at: Tick,
    present: PageSet,
    pulls: Pulls,
    pushes: Pushes,
    stale: Stale,
    touched: Touched,
}

impl Replica {
    /// Nothing present; `size` is the authority's, as of `at`. The local copy is all zero.
    pub fn new(size: u64, at: Tick, epoch: Epoch, config: ReplicaConfig) -> Replica {
        Replica {
            epoch,
            base_size: size.min(REGION_BYTES_MAX),
            base_at: at,
            doubt: None,
            past: Past::default(),
            pushed_at: Tick(0),
            present: PageSet::new(),
            pulls: Pulls::new(config),
            pushes: Pushes::default(),
            stale: Stale::default(),
            touched: Touched::default(),
        }
    }

    /// Size in bytes as this replica's programs see it: the authority's, or further where stores
    /// that are not pushed yet reach.
    pub fn size(&self) -> u64 {
        self.base_size.max(self.past.end())
    }

    /// How far the region may reach: [`Self::size`], or further where others have changed something past
    /// it. What is past the size has to be faulted for like anything absent; then the size is known.
    pub fn reach(&self) -> u64 {
        self.size().max(self.pull_end())
    }

    /// Size in bytes at the authority, as far as known.
    pub fn base_size(&self) -> u64 {
        self.base_size
    }

    /// The region's epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether a read of `range` can be answered now. Pages past the authority's size are present
    /// (zero) without having been pulled.
    pub fn is_present(&self, range: ByteRange) -> bool {
        self.present.contains_all(self.pullable(range))
    }

    /// Whether `range` can be stored now: each page it covers only in part is present.
    pub fn is_storable(&self, range: ByteRange) -> bool {
        let mut partial = self.partial(range).into_iter();
        partial.all(|page| self.present.contains_all(page))
    }

    /// A read of `range`.
    pub fn handle_fault(&mut self, _now: Instant, range: ByteRange) -> Residency {
        let pages = self.pullable(range);
        let missing: PageSet = self.present.gaps_in(pages).collect();
        if missing.is_empty() {
            return Residency::Present;
        }
        self.pulls.follow(pages);
        Residency::Wait(self.pulls.wait(pages, missing))
    }

    /// A store to `range` is wanted that [`Self::is_storable`] denied: wait for the pages it covers
    /// in part.
    pub fn handle_store_fault(&mut self, _now: Instant, range: ByteRange) -> Residency {
        let partial = self.partial(range);
        let gaps = partial.iter().flat_map(|&page| self.present.gaps_in(page));
        let missing: PageSet = gaps.collect();
        if missing.is_empty() {
            return Residency::Present;
        }
        Residency::Wait(self.pulls.wait(self.pullable(range), missing))
    }

    /// Bring `range` in, nobody waits (`memfs pull`): goes before the background.
    pub fn handle_want(&mut self, range: ByteRange) {
        let known = range.intersect(ByteRange::new(0, self.base_size));
        for gap in self.present.gaps_in(known.pages_touched()) {
            self.pulls.want(gap);
        }
    }

    /// The bytes of `range` are being stored in the local copy, under the same lock as this call.
    /// To be called only where [`Self::is_storable`] says so.
    pub fn handle_stored(&mut self, _now: Instant, range: ByteRange) {
        let range = range.intersect(ByteRange::new(0, REGION_BYTES_MAX));
        if range.is_empty() {
            return;
        }
        let pages = range.pages_touched();
        self.present.insert(pages);
        self.touched.add(pages);
        self.pushes.store(pages);
        self.past.store(range, self.base_size);
        self.pulls.arrived(pages);
    }

    /// The authority sends the beginning of the region unasked, up to `end`. The pull it counts as, to be followed
    /// by the same calls as one of [`Self::poll_pull`]; `None` where none of it is needed.
    pub fn handle_offer(&mut self, end: u64) -> Option<Pull> {
        let pages = PageRange::new(0, pages_for(end.min(self.base_size)));
        self.pulls.offer(pages, &self.present, self.base_size)
    }

    /// Bytes of a pull have arrived that the authority read at `at` or later. Appends to `wanted`
    /// the parts that are to be written to the local copy; the rest is here already, newer, or stale. Once they
    /// are written, under the same lock, [`Self::handle_landed`] has to be told. Only pages that `range` covers
    /// whole (or up to the region's size) count: tell the size that came with the answer first. Wants nothing of a
    /// pull that is not under way (any more). Bytes known to be zero may reach beyond the pull.
    pub fn wanted(&self, pull: PullId, at: Tick, range: ByteRange, wanted: &mut Vec<ByteRange>) {
        if !self.pulls.is_under_way(pull) {
            return;
        }
        let pages = self.covered(range);
        let mut landing: Vec<PageRange> = self.present.gaps_in(pages).collect();
        if let Some(too_old) = self.stale.too_old(pages, at) {
            let fresh = landing.iter().flat_map(|&run| too_old.gaps_in(run));
            landing = fresh.collect();
        }
        wanted.extend(landing.iter().map(|run| run.bytes_below(self.base_size)));
    }

    /// What was wanted of a pull is in the local copy.
    pub fn handle_landed(&mut self, wanted: &[ByteRange]) {
        for run in wanted.iter().map(ByteRange::pages_touched) {
            self.present.insert(run);
            self.touched.add(run);
            self.pulls.arrived(run);
        }
    }

    /// [`Self::wanted`] and [`Self::handle_landed`].
    #[cfg(test)]
    pub fn handle_landing(
        &mut self,
        pull: PullId,
        at: Tick,
        range: ByteRange,
        wanted: &mut Vec<ByteRange>,
    ) {
        let from = wanted.len();
        self.wanted(pull, at, range, wanted);
        self.handle_landed(&wanted[from..]);
    }

    /// All of a pull has landed. What of it was stale on arrival is pulled again.
    pub fn handle_pulled(&mut self, pull: PullId) {
        self.pulls.landed(pull, &self.present, self.base_size);
        self.stale.expire(self.pulls.oldest());
    }

    /// A pull has failed: with `Link` it is asked for again by a later `poll_pull`, with `Refused` its
    /// waiters are woken with that. A waiter that it brought more than was asked for is not: it
    /// asks again for just its own pages.
    pub fn handle_pull_failed(&mut self, pull: PullId, failure: Failure) {
        self.pulls
            .failed(pull, failure, &self.present, self.base_size);
        self.stale.expire(self.pulls.oldest());
    }

    /// A push has been taken by the authority as the change `at`: all changes of lower ticks came
    /// before it, all of higher ones after it. To be preceded or followed by [`Self::handle_size`]
    /// with the size after that change.
    pub fn handle_pushed(
        &mut self,
        push: PushId,
        at: Tick,
        dropped: &mut Vec<PageRange>,
        zeroed: &mut Vec<ByteRange>,
    ) {
        let size_before = self.size();
        let Some(push) = self.pushes.acknowledged(push) else {
            return;
        };
        self.pushed_at = self.pushed_at.max(at);
        if at > self.base_at {
            self.base_at = at;
            self.base_size = self.base_size.max(push.end);
        }
        self.past.forget(ByteRange::new(0, self.base_size));
        let mut clean = Vec::new();
        for run in push.pages.runs() {
            self.touched.add(run);
            clean.extend(self.pushes.unpushed().gaps_in(run));
        }
        for run in &clean {
            self.past.forget(run.bytes());
        }
        let below = PageRange::new(0, pages_for(self.base_size));
        let mut gone: Vec<PageRange> = Vec::new();
        for run in push.outdated(at, below) {
            gone.extend(self.pushes.unpushed().gaps_in(run));
        }
        self.drop_pages(&gone, push.changed_at);
        dropped.append(&mut gone);
        self.clear_past_the_end(&clean, size_before, zeroed);
    }

    /// A push has failed: its pages are dirty again; with `Refused` those who flush are told. When to
    /// push again is the caller's to say.
    pub fn handle_push_failed(&mut self, push: PushId, failure: Failure) {
        self.pushes.failed(push, failure);
    }

    /// Bytes have changed at the authority, by somebody else's hand, at `at`. What is dirty here
    /// stays, and what is being pushed until it is known which came last. Where it is not known what has changed
    /// (all up to the end), what is dropped is old from now on: most of it may be the same.
    pub fn handle_invalidate(&mut self, at: Tick, range: ByteRange, dropped: &mut Vec<PageRange>) {
        let pages = range.pages_touched();
        self.doubt_size(at, range);
        self.mark_stale(pages, at);
        self.pushes.changed(pages, at);
        let from = dropped.len();
        self.drop_clean(pages, at, dropped);
        if range.end == u64::MAX {
            self.handle_old(&dropped[from..].iter().copied().collect());
        }
    }

    /// The authority has begun anew, and may have lost what it had taken of these pages: what is present of them is
    /// to be pushed once more, and to reach as far as it did, also within the page in which the region ends then.
    /// To be followed by [`Self::handle_reattached`].
    pub fn handle_lost(&mut self, now: Instant, pages: PageRange) {
        let size = self.size();
        for run in self.present_runs(pages) {
            let bytes = run.bytes_below(size);
            self.handle_stored(now, bytes);
            self.past.store(bytes, 0);
        }
    }

    /// The connection is a new one to an authority that does not know this replica any more: ticks
    /// begin anew at `at`, pulls and pushes under way have failed with `Link`. `same`: the region has
    /// not changed since (its stamp is equal); otherwise what is clean is dropped.
    pub fn handle_reattached(
        &mut self,
        at: Tick,
        epoch: Epoch,
        size: u64,
        same: bool,
        dropped: &mut Vec<PageRange>,
        zeroed: &mut Vec<ByteRange>,
    ) {
        self.pulls.all_failed(&self.present, self.base_size);
        self.pushes.all_failed();
        self.stale.expire(None);
        (self.epoch, self.base_at, self.pushed_at) = (epoch, at, Tick(0));
        self.doubt = None;
        if !same {
            let all = PageRange::new(0, u64::MAX);
            self.pushes.changed(all, at);
            let from = dropped.len();
            self.drop_clean(all, at, dropped);
            self.handle_old(&dropped[from..].iter().copied().collect());
        }
        self.set_base_size(size.min(REGION_BYTES_MAX), at, zeroed);
        self.past.forget(ByteRange::new(0, self.base_size));
        self.settle_doubt(at);
    }

    /// Drop what is clean in `range`, and what is old (`memfs forget`).
    pub fn handle_forget(&mut self, range: ByteRange, dropped: &mut Vec<PageRange>) {
        let pages = range.pages_touched();
        self.pulls.do_not_want(pages);
        self.drop_clean(pages, Tick(0), dropped);
        dropped.extend(self.pulls.old.pages.runs_in(pages));
        self.pulls.old.leave(pages);
    }

    /// Somebody waits until everything dirty now has been pushed; `None` if nothing is.
    pub fn handle_flush(&mut self) -> Option<FlushId> {
        self.pushes.flush()
    }

    /// Nobody waits any more (a deadline has passed).
    pub fn handle_waiter_gone(&mut self, waiter: WaiterId) {
        self.pulls.waiter_gone(waiter);
    }

    /// Turns pulling of what nobody asked for on or off (a full cache).
    pub fn set_background(&mut self, on: bool) {
        self.pulls.set_background(on);
    }

    /// The order in which an earlier use has touched the region is asked for: nothing is pulled in the
    /// background until it is told.
    pub fn expect_order(&mut self) {
        self.pulls.expect_order();
    }

    /// That order, an empty one if there is none: the background goes along it.
    pub fn handle_order(&mut self, order: &Order) {
        self.pulls.learn(order);
    }

    /// The next pull to make, demand first.
    pub fn poll_pull(&mut self) -> Option<Pull> {
        // Whoever waits for a flush has nothing of the background's pulls.
        let yielding = self.pushes.is_awaited();
        let end = self.pull_end();
        self.pulls
            .poll(&self.present, self.base_size, end, yielding)
    }

    /// The next push to make, of at most `bytes_max` bytes (at least a page) and `extents_max` extents.
    /// A page is in one push at a time.
    pub fn poll_push(&mut self, bytes_max: u64, extents_max: usize) -> Option<Push> {
        let (id, pages) = self.pushes.take(bytes_max, extents_max)?;
        let size = self.size();
        let extents: Vec<ByteRange> = pages.iter().map(|run| run.bytes_below(size)).collect();
        let bytes = extents.iter().map(ByteRange::len).sum();
        let end = extents.last().map_or(0, |last| last.end);
        self.pushes.begin(id, &pages, bytes, end);
        Some(Push { id, extents })
    }

    /// Who is to be woken, with what outcome.
    pub fn poll_woken(&mut self) -> Option<(WaiterId, Result<(), Failure>)> {
        self.pulls.poll_woken()
    }

    /// Which flush is at its end, with what outcome.
    pub fn poll_flushed(&mut self) -> Option<(FlushId, Result<(), Failure>)> {
        self.pushes.poll_flushed()
    }

    /// Pages present, by pull or by store (not those past the authority's size that nobody stored).
    pub fn present_pages(&self) -> u64 {
        self.present.len()
    }

    /// Pages stored and not yet taken by the authority.
    pub fn dirty_pages(&self) -> u64 {
        self.pushes.unpushed().len()
    }

    /// Bytes of pulls and pushes under way.
    pub fn in_flight_bytes(&self) -> u64 {
        self.pulls.under_way_bytes() + self.pushes.under_way_bytes()
    }

    /// Whether the last reader that met absent pages is a sequential one: it asks for many pages at a time.
    pub fn is_read_in_order(&self) -> bool {
        self.pulls.is_read_in_order()
    }

    /// Runs of present pages in `range`: what may be put into the kernel's page cache.
    pub fn present_runs(&self, range: PageRange) -> Vec<PageRange> {
        self.present.runs_in(range).collect()
    }

    /// What is present, dirty, pushing.
    #[cfg(test)]
    pub(super) fn sets(&self) -> (&PageSet, &PageSet, &PageSet) {
        (&self.present, &self.pushes.dirty, &self.pushes.pushing)
    }

    /// Nothing is under way, nobody waits, and nothing is remembered on behalf of such.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.pulls.is_idle()
            && self.pushes.is_idle()
            && self.stale.len() == 0
            && self.past.end() == 0
    }

    /// As for each pull under way: the link broke.
    #[cfg(test)]
    pub(super) fn fail_pulls(&mut self) {
        self.pulls.all_failed(&self.present, self.base_size);
        self.stale.expire(None);
    }

    /// The pages that `range` covers whole, or up to the region's size.
    fn covered(&self, range: ByteRange) -> PageRange {
        let end = match range.end {
            end if end >= self.base_size => pages_for(self.base_size),
            end => end / PAGE_BYTES,
        };
        PageRange::new(range.start.div_ceil(PAGE_BYTES), end)
    }

    /// The pages of `range` that have to be pulled unless they are present.
    fn pullable(&self, range: ByteRange) -> PageRange {
        let pages = range.pages_touched();
        pages.intersect(PageRange::new(0, pages_for(self.pull_end())))
    }

    /// Of those, the ones that `range` covers only in part: its first and its last, at most.
    fn partial(&self, range: ByteRange) -> [PageRange; 2] {
        let touched = range.pages_touched();
        let covered = range.pages_covered();
        let (first, last) = if covered.is_empty() {
            (touched, PageRange::new(touched.end, touched.end))
        } else {
            let first = PageRange::new(touched.start, covered.start);
            (first, PageRange::new(covered.end, touched.end))
        };
        let below = PageRange::new(0, pages_for(self.pull_end()));
        [first.intersect(below), last.intersect(below)]
    }

    /// Answers below `at` to pulls under way do not know these pages as they are now.
    fn mark_stale(&mut self, pages: PageRange, at: Tick) {
        if self.pulls.oldest().is_some() {
            self.stale.mark(pages, at, self.pulls.next_id());
        }
    }

    /// Drops what is clean of `pages`, which changed at `at`.
    fn drop_clean(&mut self, pages: PageRange, at: Tick, dropped: &mut Vec<PageRange>) {
        let from = dropped.len();
        for run in self.present.runs_in(pages) {
            dropped.extend(self.pushes.unpushed().gaps_in(run));
        }
        self.drop_pages(&dropped[from..], at);
    }

    /// Drops clean pages that changed at `at`. What lands on them next has to know our own pushes too.
    fn drop_pages(&mut self, pages: &[PageRange], at: Tick) {
        for &run in pages {
            self.present.remove(run);
            self.touched.add(run);
            self.mark_stale(run, at.max(self.pushed_at));
        }
    }
}

#[cfg(test)]
mod tests;
