//! A region on this replica: the core's state of it, its local copy, and who waits.
//!
//! ```text
//!   front end ──try_read──▶ ┌ inner (RwLock) ───────────────┐ ◀──land── pull tasks
//!             ──try_write─▶ │ core: region::Replica         │ ──read──▶ push tasks
//!                           │ copy: MappedFile              │
//!                           └───────────────────────────────┘
//! ```
//!
//! Readers share the lock and reply from the mapping while they hold it. Whatever changes the core ends with
//! [`Region::drive`], which starts the pulls and pushes the core now asks for and wakes those it names.

use super::inner::Inner;
use super::learn::Touches;
use super::link::Moment;
use super::nodes::Node;
use super::refused::Refusal;
use super::{Shared, compare, transfer};
use crate::region::{Compared, ComparisonId, Failure, PullId, Push};
use crate::store::{Errno, Result};
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use crate::wire::{Access, HASHED_BYTES_MAX, HandleId};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// Pushes of one region under way at once, at most.
const PUSHES_MAX: usize = super::cache::map::PUSHES_MAX;
/// Dirty bytes from which on a region is pushed without waiting for the push interval.
const PUSH_EARLY_BYTES: u64 = 2 << 20;

/// A region on this replica.
pub(super) struct Region {
    pub node: Arc<Node>,
    pub shared: Weak<Shared>,
    inner: RwLock<Inner>,
    /// The authority's handle of it.
    pub remote: tokio::sync::Mutex<Option<Remote>>,
    /// Tells those who wait for pushes to end, for room, or for the kernel thread.
    pub changed: Notify,
    /// Reads that wait for something.
    reads: Mutex<Vec<PageRange>>,
    last_used: AtomicU64,
    pub touches: Touches,
}

/// A handle at the authority.
#[derive(Clone, Copy)]
pub(super) struct Remote {
    pub handle: HandleId,
    pub access: Access,
    pub generation: u64,
}

impl Region {
    pub fn new(node: Arc<Node>, shared: &Arc<Shared>, inner: Inner) -> Region {
        Region {
            node,
            shared: Arc::downgrade(shared),
            inner: RwLock::new(inner),
            remote: tokio::sync::Mutex::new(None),
            changed: Notify::new(),
            reads: Mutex::default(),
            last_used: AtomicU64::new(0),
            touches: Touches::default(),
        }
    }

    /// Whether it must be kept: open, dirty, or in transfer.
    pub fn is_busy(&self) -> bool {
        self.inner.read().is_busy()
    }

    /// Looks at the state.
    pub fn look<R>(&self, look: impl FnOnce(&Inner) -> R) -> R {
        look(&self.inner.read())
    }

    /// Changes the state, then does what the core asks for.
    pub fn update<R>(self: &Arc<Self>, update: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.write();
        let result = update(&mut inner);
        self.drive(inner);
        result
    }

    /// When it was last opened or closed, for choosing what to drop.
    pub fn last_used(&self) -> u64 {
        self.last_used.load(Ordering::Relaxed)
    }

    /// It is being used.
    pub fn use_now(&self, count: u64) {
        self.last_used.store(count, Ordering::Relaxed);
    }

    /// Reads from the local copy, if all of it is there.
    pub fn try_read<R>(
        &self,
        offset: u64,
        len: u32,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> Option<Result<R>> {
        let inner = self.inner.read();
        let until = offset.saturating_add(u64::from(len));
        let below = |end: u64| ByteRange::new(offset.min(end), until.min(end));
        if inner.is_storing(ByteRange::new(offset, until)) {
            return None;
        }
        if !inner.core.is_present(below(inner.core.reach())) {
            return None;
        }
        let range = below(inner.core.size());
        if range.is_empty() {
            return Some(Ok(deliver(&[])));
        }
        if range.end > inner.copy.len() {
            return None;
        }
        inner.clock.note(range);
        self.touches.note(range);
        Some(
            inner
                .copy
                .with_bytes(range.start, range.len() as usize, deliver)
                .map_err(io_errno),
        )
    }

    /// Asks for pages; the receiver is told when they are there. `None`: they are here.
    pub fn fault(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
        store: bool,
    ) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        let range = ByteRange::at(offset, len).ok_or(Errno::FBIG)?;
        self.update(|inner| {
            let now = Instant::now();
            let residency = if store {
                inner.core.handle_store_fault(now, range)
            } else {
                inner.ensure_room(range.end.min(inner.core.size()))?;
                inner.core.handle_fault(now, range)
            };
            Ok(match residency {
                crate::region::Residency::Present => None,
                crate::region::Residency::Wait(waiter) => {
                    let (sender, receiver) = oneshot::channel();
                    inner.waiters.insert(waiter, sender);
                    Some(receiver)
                }
            })
        })
    }

    /// Stores into the local copy, if no page is missing for it. `None`: one is.
    pub fn try_store(self: &Arc<Self>, offset: u64, bytes: &[u8]) -> Option<Result<()>> {
        let Some(range) = ByteRange::at(offset, bytes.len() as u64) else {
            return Some(Err(Errno::FBIG));
        };
        if range.is_empty() {
            return Some(Ok(()));
        }
        let mut inner = self.inner.write();
        if inner.resizing > 0 || !inner.core.is_storable(range) {
            return None;
        }
        if let Err(errno) = inner.store(range, bytes) {
            self.drive(inner);
            return Some(Err(errno));
        }
        if inner.core.dirty_pages() * PAGE_BYTES >= PUSH_EARLY_BYTES && !inner.rests() {
            inner.push_now = true;
        }
        self.drive(inner);
        Some(Ok(()))
    }

    /// A store of a program that may have to wait: what it touches is not read before it is made.
    pub fn begin_store(self: &Arc<Self>, range: ByteRange) -> StoreHold {
        let pages = range.pages_touched();
        self.update(|inner| inner.storing.push(pages));
        StoreHold(self.clone(), pages)
    }

    /// A read that may have to wait.
    pub fn begin_read(&self, range: ByteRange) -> ReadHold<'_> {
        let pages = range.pages_touched();
        self.reads.lock().push(pages);
        ReadHold(self, pages)
    }

    /// Whole pages that reads wait for.
    pub fn reads_waiting(&self) -> Vec<ByteRange> {
        self.reads.lock().iter().map(PageRange::bytes).collect()
    }

    /// Starts a flush; the receiver is told when all that was dirty has been taken. `None`: nothing was.
    pub fn flush(self: &Arc<Self>) -> Option<oneshot::Receiver<Result<()>>> {
        if self.look(|inner| inner.core.dirty_pages() == 0 && inner.pushes == 0) {
            return None;
        }
        self.update(|inner| {
            let flush = inner.core.handle_flush()?;
            let (sender, receiver) = oneshot::channel();
            inner.flushes.insert(flush, sender);
            inner.push_now = true;
            Some(receiver)
        })
    }

    /// The push interval has passed.
    pub fn push_due(self: &Arc<Self>) {
        if self.look(|inner| inner.core.dirty_pages() > 0 && !inner.rests()) {
            self.push_again();
        }
    }

    /// Somebody wants it pushed, also if that has just been refused.
    pub fn push_again(self: &Arc<Self>) {
        self.update(|inner| inner.push_now = true);
    }

    /// Waits until no push is under way, and lets none begin until the guard is dropped.
    pub async fn hold_pushes(self: &Arc<Self>) -> PushHold {
        self.update(|inner| inner.hold += 1);
        let hold = PushHold(self.clone());
        self.wait_until(|inner| inner.pushes == 0).await;
        hold
    }

    /// Waits until the state is as wanted.
    pub async fn wait_until(&self, wanted: impl Fn(&Inner) -> bool) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if self.look(&wanted) {
                return;
            }
            changed.await;
        }
    }

    /// Counts a program that may store from here on, once the kernel thread is not in between.
    pub async fn begin_writing(self: &Arc<Self>) {
        // Counted first: the kernel thread begins nothing new while there is a writer.
        self.update(|inner| inner.writers += 1);
        self.wait_until(|inner| !inner.putting).await;
    }

    /// The opposite of [`Region::begin_writing`].
    pub fn end_writing(self: &Arc<Self>) {
        self.update(|inner| inner.writers = inner.writers.saturating_sub(1));
    }

    /// The size is going to be changed: no push may pass that, no store is made meanwhile, and the kernel thread puts
    /// nothing.
    pub async fn begin_resize(self: &Arc<Self>) -> ResizeHold {
        self.update(|inner| {
            inner.writers += 1;
            inner.hold += 1;
            inner.resizing += 1;
        });
        let hold = ResizeHold(self.clone());
        self.wait_until(|inner| !inner.putting && inner.pushes == 0)
            .await;
        hold
    }

    /// A pull task has ended.
    pub fn pull_ended(self: &Arc<Self>, pull: PullId, outcome: std::result::Result<(), Failure>) {
        self.update(|inner| {
            inner.pulls -= 1;
            match outcome {
                Ok(()) => inner.core.handle_pulled(pull),
                Err(failure) => inner.core.handle_pull_failed(pull, failure),
            }
        });
        self.changed.notify_waiters();
    }

    /// A comparison has ended.
    pub fn comparison_ended(self: &Arc<Self>, comparison: ComparisonId, outcome: Compared) {
        self.update(|inner| {
            inner.comparisons -= 1;
            inner.core.handle_compared(comparison, outcome);
        });
        self.changed.notify_waiters();
    }

    /// A push task has ended.
    pub fn push_ended(
        self: &Arc<Self>,
        push: &Push,
        outcome: std::result::Result<Moment, Failure>,
    ) {
        let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
        let cut = self.update(|inner| {
            inner.pushes -= 1;
            inner.end_push(push.id);
            self.note_outcome(inner, outcome.err());
            match outcome {
                Ok(at) => {
                    for extent in &push.extents {
                        inner.unsynced.pushed(extent.pages_touched());
                    }
                    // One of an older session has failed for the core, and is none any more.
                    inner
                        .core
                        .handle_pushed(push.id, at.tick, &mut dropped, &mut zeroed);
                }
                Err(failure) => {
                    inner.core.handle_push_failed(push.id, failure);
                    // Not again at once: at the next interval, unless somebody waits for it.
                    inner.push_now = !inner.flushes.is_empty()
                        || matches!(failure, Failure::Link) && inner.push_now;
                }
            }
            inner.zero(&zeroed)
        });
        self.report_cut(cut);
        if let Some(shared) = self.shared.upgrade() {
            if let Err(Failure::Refused(_)) = outcome {
                shared.refusals.send_modify(|_| ());
            }
            self.count_copy(&shared);
            let dropped = dropped.iter().map(PageRange::bytes);
            for range in dropped.chain(zeroed) {
                shared.drop_pages(&self.node, range);
            }
        }
        self.changed.notify_waiters();
    }

    /// Says so where pushes begin to be refused, and where they are taken again.
    fn note_outcome(&self, inner: &mut Inner, failure: Option<Failure>) {
        let before = inner.refusal;
        match failure {
            Some(Failure::Link) => {}
            Some(Failure::Refused(errno)) => {
                let errno = super::link::errno_of(errno);
                inner.refusal = Some(Refusal::new(errno, before, Instant::now()));
                if before.is_none_or(|before| before.errno != errno) {
                    let path = self.node.path_or_unnamed();
                    tracing::warn!("{path:?}: cannot be pushed, and is kept: {errno}");
                }
            }
            None => {
                inner.refusal = None;
                if before.is_some() {
                    tracing::info!("{:?}: is pushed again", self.node.path_or_unnamed());
                }
            }
        }
    }

    /// Waits until pages are here that [`Region::fault`] asks for.
    pub async fn wait_for(self: &Arc<Self>, offset: u64, len: u64, store: bool) -> Result<()> {
        match self.fault(offset, len, store)? {
            Some(woken) => woken.await.unwrap_or(Err(Errno::IO)),
            None => Ok(()),
        }
    }

    /// Bytes past the end could not be made zero in the local copy.
    pub fn report_cut(&self, cut: Result<()>) {
        if let Err(errno) = cut {
            let path = self.node.path_or_unnamed();
            tracing::error!("{path:?}: the local copy cannot be cut: {errno}");
        }
    }

    /// Does what the core asks for.
    fn drive(self: &Arc<Self>, mut inner: RwLockWriteGuard<'_, Inner>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        inner.note_touched();
        while let Some((waiter, outcome)) = inner.core.poll_woken() {
            if let Some(sender) = inner.waiters.remove(&waiter) {
                let _ = sender.send(outcome.map_err(failure_errno));
            }
        }
        while let Some((flush, outcome)) = inner.core.poll_flushed() {
            if let Some(sender) = inner.flushes.remove(&flush) {
                let _ = sender.send(outcome.map_err(failure_errno));
            }
        }
        while inner.opens > 0
            && inner.comparisons < compare::COMPARISONS_MAX
            && let Some(comparison) =
                (inner.core).poll_comparison(HASHED_BYTES_MAX, compare::RUNS_MAX)
        {
            inner.comparisons += 1;
            let compare = compare::compare(self.clone(), comparison);
            shared.runtime.spawn(compare);
        }
        while let Some(pull) = inner.core.poll_pull() {
            inner.pulls += 1;
            shared.runtime.spawn(transfer::pull(self.clone(), pull));
        }
        while inner.push_now && inner.hold == 0 && inner.pushes < PUSHES_MAX {
            let bytes_max = crate::wire::TRANSFER_BYTES_MAX;
            match inner
                .core
                .poll_push(bytes_max, crate::wire::PUSH_EXTENTS_MAX)
            {
                Some(push) => {
                    inner.pushes += 1;
                    inner.begin_push(&push);
                    let push = transfer::push(self.clone(), push, inner.generation);
                    shared.runtime.spawn(push);
                }
                None => {
                    // A page that was stored while it is being pushed has its turn when that push ends.
                    inner.push_now = inner.pushes > 0;
                    break;
                }
            }
        }
        let dirty = inner.core.dirty_pages() * PAGE_BYTES;
        let counted = std::mem::replace(&mut inner.dirty_counted, dirty);
        drop(inner);
        shared.count_dirty(counted, dirty);
    }

    /// Counts what the copy takes on its disk anew.
    pub fn count_copy(&self, shared: &Arc<Shared>) {
        let mut inner = self.inner.write();
        let now = inner.allocated_bytes();
        let before = std::mem::replace(&mut inner.allocated_counted, now);
        let ahead = inner.opens > 0 && shared.may_pull_ahead();
        inner.core.set_background(ahead);
        drop(inner);
        shared.count_copies(before, now);
        shared.make_room();
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            let inner = self.inner.get_mut();
            shared.count_copies(inner.allocated_counted, 0);
            shared.count_dirty(inner.dirty_counted, 0);
            if let (Some(map), Some(cache)) = (&mut inner.map, &shared.cache) {
                map.set_used(super::cache::seconds_now());
                if inner.marked && !inner.is_pushing() {
                    cache.unmark_writing(self.node.id);
                }
                shared.release_copy(cache, self.node.id, inner.allocated_bytes());
            }
        }
    }
}

/// While it lives no push of the region begins.
pub(super) struct PushHold(Arc<Region>);

impl Drop for PushHold {
    fn drop(&mut self) {
        self.0.update(|inner| inner.hold -= 1);
    }
}

/// While it lives the size is being changed.
pub(super) struct ResizeHold(Arc<Region>);

impl Drop for ResizeHold {
    fn drop(&mut self) {
        self.0.update(|inner| {
            inner.resizing -= 1;
            inner.hold -= 1;
            inner.writers = inner.writers.saturating_sub(1);
        });
        self.0.changed.notify_waiters();
    }
}

/// While it lives what a store touches is not read.
pub(super) struct StoreHold(Arc<Region>, PageRange);

impl Drop for StoreHold {
    fn drop(&mut self) {
        self.0.update(|inner| {
            let this = inner.storing.iter().position(|pages| *pages == self.1);
            this.map(|this| inner.storing.swap_remove(this))
        });
        self.0.changed.notify_waiters();
    }
}

/// While it lives a read waits.
pub(super) struct ReadHold<'a>(&'a Region, PageRange);

impl Drop for ReadHold<'_> {
    fn drop(&mut self) {
        let mut reads = self.0.reads.lock();
        let this = reads.iter().position(|pages| *pages == self.1);
        this.map(|this| reads.swap_remove(this));
    }
}

/// An I/O error of the local copy as an errno.
pub(super) fn io_errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn failure_errno(failure: Failure) -> Errno {
    match failure {
        Failure::Link => Errno::IO,
        Failure::Refused(errno) => super::link::errno_of(errno),
    }
}
