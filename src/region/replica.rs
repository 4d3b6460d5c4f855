//! What a replica knows of one region.

use super::{Epoch, Tick};
use crate::units::{ByteRange, PageRange};
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
    /// Not all: this waiter will be woken, once, with the outcome.
    Wait(WaiterId),
}

/// A pull to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Its name.
    pub id: PullId,
    /// Whole pages, clipped at the size of the region.
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
#[derive(Debug)]
pub struct Replica {}

impl Replica {
    /// Nothing present; `size` is the authority's, as of `at`.
    pub fn new(_size: u64, _at: Tick, _epoch: Epoch, _config: ReplicaConfig) -> Replica {
        unimplemented!()
    }
    /// Size in bytes as this replica's programs see it: the authority's, or further where stores
    /// that are not pushed yet reach.
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    /// Size in bytes at the authority, as far as known.
    pub fn base_size(&self) -> u64 {
        unimplemented!()
    }
    /// Runs of pages in `range` that are dirty or being pushed, ascending.
    pub fn unpushed_runs(&self, _range: PageRange) -> Vec<PageRange> {
        unimplemented!()
    }
    /// The region's epoch.
    pub fn epoch(&self) -> Epoch {
        unimplemented!()
    }
    /// Whether a read of `range` can be answered now. Pages past the authority's size are present
    /// (zero) without having been pulled.
    pub fn is_present(&self, _range: ByteRange) -> bool {
        unimplemented!()
    }
    /// Whether `range` can be stored now: each page it covers only in part is present.
    pub fn is_storable(&self, _range: ByteRange) -> bool {
        unimplemented!()
    }
    /// A read of `range`.
    pub fn handle_fault(&mut self, _now: Instant, _range: ByteRange) -> Residency {
        unimplemented!()
    }
    /// A store to `range` is wanted that [`Self::is_storable`] denied: wait for the pages it covers
    /// in part.
    pub fn handle_store_fault(&mut self, _now: Instant, _range: ByteRange) -> Residency {
        unimplemented!()
    }
    /// Bring `range` in, nobody waits (`memfs pull`): goes before the background.
    pub fn handle_want(&mut self, _range: ByteRange) {
        unimplemented!()
    }
    /// The bytes of `range` are being stored in the local copy, under the same lock as this call.
    pub fn handle_stored(&mut self, _now: Instant, _range: ByteRange) {
        unimplemented!()
    }
    /// Bytes of a pull have arrived that the authority read at `at` or later. Appends to `wanted`
    /// the parts that are to be written to the local copy, under the same lock as this call; the rest
    /// is here already, newer, or stale. Only pages that `range` covers whole (or up to the region's
    /// size) count.
    pub fn handle_landing(
        &mut self,
        _pull: PullId,
        _at: Tick,
        _range: ByteRange,
        _wanted: &mut Vec<ByteRange>,
    ) {
        unimplemented!()
    }
    /// As [`Self::handle_landing`], for bytes known to be zero; may reach beyond the pull.
    pub fn handle_zeroes(&mut self, _at: Tick, _range: ByteRange, _wanted: &mut Vec<ByteRange>) {
        unimplemented!()
    }
    /// All of a pull has landed. What of it was stale on arrival is pulled again.
    pub fn handle_pulled(&mut self, _pull: PullId) {
        unimplemented!()
    }
    /// A pull has failed: with `Link` it is asked for again by a later `poll_pull`, with `Refused` its
    /// waiters are woken with that.
    pub fn handle_pull_failed(&mut self, _pull: PullId, _failure: Failure) {
        unimplemented!()
    }
    /// A push has been taken by the authority at `at`.
    pub fn handle_pushed(&mut self, _push: PushId, _at: Tick) {
        unimplemented!()
    }
    /// A push has failed: its pages are dirty again; with `Refused` those who flush are told.
    pub fn handle_push_failed(&mut self, _push: PushId, _failure: Failure) {
        unimplemented!()
    }
    /// Bytes have changed at the authority, by somebody else's hand, at `at`. What is dirty here
    /// stays; appends to `dropped` the pages that were present and are not any more.
    pub fn handle_invalidate(
        &mut self,
        _at: Tick,
        _range: ByteRange,
        _dropped: &mut Vec<PageRange>,
    ) {
        unimplemented!()
    }
    /// The authority's size, from an answer made at `at`; an older one than known is ignored. Pages
    /// that a growing region gains are absent, unless dirty.
    pub fn handle_size(&mut self, _at: Tick, _size: u64) {
        unimplemented!()
    }
    /// The authority has set the size on this replica's request (a truncation), at `at`. Pages past
    /// `size` are forgotten, dirty ones too.
    pub fn handle_resized(&mut self, _at: Tick, _size: u64) {
        unimplemented!()
    }
    /// The connection is a new one to an authority that does not know this replica any more: ticks
    /// begin anew at `at`, pulls and pushes under way have failed with `Link`. `same`: the region has
    /// not changed since (its stamp is equal); otherwise what is clean is dropped, into `dropped`.
    pub fn handle_reattached(
        &mut self,
        _at: Tick,
        _epoch: Epoch,
        _size: u64,
        _same: bool,
        _dropped: &mut Vec<PageRange>,
    ) {
        unimplemented!()
    }
    /// Drop what is clean in `range` (`memfs forget`).
    pub fn handle_forget(&mut self, _range: ByteRange, _dropped: &mut Vec<PageRange>) {
        unimplemented!()
    }
    /// Somebody waits until everything dirty now has been pushed; `None` if nothing is.
    pub fn handle_flush(&mut self) -> Option<FlushId> {
        unimplemented!()
    }
    /// Nobody waits any more (a deadline has passed).
    pub fn handle_waiter_gone(&mut self, _waiter: WaiterId) {
        unimplemented!()
    }
    /// Turns pulling of what nobody asked for on or off (a full cache).
    pub fn set_background(&mut self, _on: bool) {
        unimplemented!()
    }
    /// The next pull to make, demand first.
    pub fn poll_pull(&mut self) -> Option<Pull> {
        unimplemented!()
    }
    /// The next push to make, of at most `bytes_max` bytes and `extents_max` extents. A page is in one
    /// push at a time.
    pub fn poll_push(&mut self, _bytes_max: u64, _extents_max: usize) -> Option<Push> {
        unimplemented!()
    }
    /// Who is to be woken, with what outcome.
    pub fn poll_woken(&mut self) -> Option<(WaiterId, Result<(), Failure>)> {
        unimplemented!()
    }
    /// Which flush is at its end, with what outcome.
    pub fn poll_flushed(&mut self) -> Option<(FlushId, Result<(), Failure>)> {
        unimplemented!()
    }
    /// Pages present, by pull or by store (not those past the authority's size).
    pub fn present_pages(&self) -> u64 {
        unimplemented!()
    }
    /// Pages stored and not yet taken by the authority.
    pub fn dirty_pages(&self) -> u64 {
        unimplemented!()
    }
    /// Bytes of pulls and pushes under way.
    pub fn in_flight_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Runs of present pages in `range`: what may be put into the kernel's page cache.
    pub fn present_runs(&self, _range: PageRange) -> Vec<PageRange> {
        unimplemented!()
    }
}
