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

use super::nodes::Node;
use super::unsynced::Unsynced;
use super::{Shared, transfer};
use crate::region::{Failure, FlushId, PullId, Push, Replica, WaiterId};
use crate::store::{Errno, Result};
use crate::sys::MappedFile;
use crate::units::{ByteRange, PAGE_BYTES, PageRange};
use crate::wire::{Access, HandleId};
use parking_lot::{RwLock, RwLockWriteGuard};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// Pushes of one region under way at once, at most.
const PUSHES_MAX: usize = 4;
/// Dirty bytes from which on a region is pushed without waiting for the push interval.
const PUSH_EARLY_BYTES: u64 = 2 << 20;
/// Room for reading and storing in local copies, so that no more of a large file is allotted than is used.
const COPY_STEP_BYTES: u64 = 1 << 20;

/// A region on this replica.
pub(super) struct Region {
    pub node: Arc<Node>,
    pub shared: Weak<Shared>,
    inner: RwLock<Inner>,
    /// The authority's handle of it.
    pub remote: tokio::sync::Mutex<Option<Remote>>,
    /// Tells those who wait for pushes to end, for room, or for the kernel thread.
    pub changed: Notify,
    last_used: AtomicU64,
}

/// A handle at the authority.
#[derive(Clone, Copy)]
pub(super) struct Remote {
    pub handle: HandleId,
    pub access: Access,
    pub generation: u64,
}

/// What the lock guards.
pub(super) struct Inner {
    pub core: Replica,
    pub copy: MappedFile,
    waiters: HashMap<WaiterId, oneshot::Sender<Result<()>>>,
    flushes: HashMap<FlushId, oneshot::Sender<Result<()>>>,
    /// Pushes are to be made now and not at the next interval.
    push_now: bool,
    /// Of the session that the core's pushes are meant for.
    pub generation: u64,
    /// Pushed, and not known to survive the authority's machine.
    pub unsynced: Unsynced,
    /// No push may begin: the size is being changed.
    hold: u32,
    pushes: usize,
    pulls: usize,
    /// Handles open on this mount, and those of them open for writing.
    pub opens: u32,
    pub writers: u32,
    /// The kernel thread is putting pages: nobody may begin to write meanwhile.
    pub putting: bool,
    dirty_counted: u64,
    allocated_counted: u64,
}

impl Region {
    pub fn new(node: Arc<Node>, shared: &Arc<Shared>, core: Replica, copy: MappedFile) -> Region {
        Region {
            node,
            shared: Arc::downgrade(shared),
            inner: RwLock::new(Inner {
                core,
                copy,
                waiters: HashMap::new(),
                flushes: HashMap::new(),
                push_now: false,
                generation: shared.generation.load(Ordering::Relaxed),
                unsynced: Unsynced::default(),
                hold: 0,
                pushes: 0,
                pulls: 0,
                opens: 0,
                writers: 0,
                putting: false,
                dirty_counted: 0,
                allocated_counted: 0,
            }),
            remote: tokio::sync::Mutex::new(None),
            changed: Notify::new(),
            last_used: AtomicU64::new(0),
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
        if !inner.core.is_storable(range) {
            return None;
        }
        if let Err(errno) = inner.ensure_room(range.end) {
            return Some(Err(errno));
        }
        if let Err(error) = inner.copy.write_at(bytes, offset) {
            return Some(Err(io_errno(error)));
        }
        inner.core.handle_stored(Instant::now(), range);
        if inner.core.dirty_pages() * PAGE_BYTES >= PUSH_EARLY_BYTES {
            inner.push_now = true;
        }
        self.drive(inner);
        Some(Ok(()))
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
        if self.look(|inner| inner.core.dirty_pages() > 0) {
            self.update(|inner| inner.push_now = true);
        }
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

    /// A push task has ended.
    pub fn push_ended(
        self: &Arc<Self>,
        push: &Push,
        outcome: std::result::Result<crate::region::Tick, Failure>,
    ) {
        let (mut dropped, mut zeroed) = (Vec::new(), Vec::new());
        let cut = self.update(|inner| {
            inner.pushes -= 1;
            match outcome {
                Ok(at) => {
                    for extent in &push.extents {
                        inner.unsynced.pushed(extent.pages_touched());
                    }
                    inner
                        .core
                        .handle_pushed(push.id, at, &mut dropped, &mut zeroed);
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
            let dropped = dropped.iter().map(PageRange::bytes);
            for range in dropped.chain(zeroed) {
                shared.queue(super::kernel::Job::DropPages(self.node.no, range));
            }
        }
        self.changed.notify_waiters();
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
    pub fn count_copy(&self, shared: &Shared) {
        let mut inner = self.inner.write();
        let now = inner
            .copy
            .allocated_bytes()
            .unwrap_or(inner.allocated_counted);
        let before = std::mem::replace(&mut inner.allocated_counted, now);
        drop(inner);
        shared.count_copies(before, now);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            let inner = self.inner.get_mut();
            shared.count_copies(inner.allocated_counted, 0);
            shared.count_dirty(inner.dirty_counted, 0);
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

impl Inner {
    fn is_busy(&self) -> bool {
        self.opens > 0 || self.core.dirty_pages() > 0 || self.pushes > 0 || self.pulls > 0
    }

    /// Makes the copy reach to `end`, by steps.
    pub fn ensure_room(&mut self, end: u64) -> Result<()> {
        if end > self.copy.len() {
            let step = COPY_STEP_BYTES.max((end / 4) & !(COPY_STEP_BYTES - 1));
            let stepped = end.checked_next_multiple_of(step).unwrap_or(end);
            let len = stepped.min(self.core.size().max(end).next_multiple_of(PAGE_BYTES));
            self.copy.set_len(len).map_err(io_errno)?;
        }
        Ok(())
    }

    /// Lands bytes of a pull: those of them that are wanted go into the copy. `pieces` are the bytes from
    /// `range.start` on.
    pub fn land(
        &mut self,
        pull: PullId,
        at: crate::region::Tick,
        range: ByteRange,
        pieces: &[bytes::Bytes],
        wanted: &mut Vec<ByteRange>,
    ) -> Result<()> {
        wanted.clear();
        self.ensure_room(range.end)?;
        self.core.handle_landing(pull, at, range, wanted);
        for &part in wanted.iter() {
            let slices = slices_of(pieces, part.start - range.start, part.len());
            if let Err(error) = self.copy.write_pieces_at(&slices, part.start) {
                self.drop_clean(range);
                return Err(io_errno(error));
            }
        }
        Ok(())
    }

    /// Lands zeroes.
    pub fn land_zeroes(
        &mut self,
        pull: PullId,
        at: crate::region::Tick,
        range: ByteRange,
        wanted: &mut Vec<ByteRange>,
    ) -> Result<()> {
        wanted.clear();
        self.core.handle_zeroes(pull, at, range, wanted);
        for &part in wanted.iter() {
            // Past the copy's end there is nothing but a hole to come.
            if let Err(errno) = self.punch_bytes(part) {
                self.drop_clean(range);
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Whether the authority's handle of it is needed: a program has it open, or something is dirty.
    pub fn is_open(&self) -> bool {
        self.opens > 0 || self.core.dirty_pages() > 0
    }

    /// Whether stores are on their way, or still to go.
    pub fn is_pushing(&self) -> bool {
        self.pushes > 0 || self.core.dirty_pages() > 0
    }

    /// The authority's size, from an answer made at `at`. What lies past a smaller one reads as zeroes
    /// should the region grow again.
    pub fn adopt_size(&mut self, at: crate::region::Tick, size: u64) -> Result<()> {
        let mut zeroed = Vec::new();
        self.core.handle_size(at, size, &mut zeroed);
        self.zero(&zeroed)
    }

    /// The authority was started anew: what it may have lost is dirty again.
    pub fn restore_unsynced(&mut self) {
        let now = Instant::now();
        for run in self.unsynced.lost().runs() {
            for run in self.core.present_runs(run) {
                let bytes = run.bytes_below(self.core.size());
                self.core.handle_stored(now, bytes);
            }
        }
    }

    /// The authority has set the size on this mount's behalf.
    pub fn resized(
        &mut self,
        at: crate::region::Tick,
        size: u64,
        dropped: &mut Vec<PageRange>,
    ) -> Result<()> {
        let mut zeroed = Vec::new();
        self.core.handle_resized(at, size, dropped, &mut zeroed);
        self.zero(&zeroed)
    }

    /// Makes holes of bytes that are past the end now.
    pub fn zero(&self, ranges: &[ByteRange]) -> Result<()> {
        ranges.iter().try_for_each(|&range| self.punch_bytes(range))
    }

    /// Makes holes of pages that were dropped.
    pub fn punch(&self, pages: &[PageRange]) -> Result<()> {
        pages
            .iter()
            .try_for_each(|run| self.punch_bytes(run.bytes()))
    }

    fn punch_bytes(&self, range: ByteRange) -> Result<()> {
        let range = range.intersect(ByteRange::new(0, self.copy.len()));
        self.copy.punch(range.start, range.len()).map_err(io_errno)
    }

    /// Forgets what is clean in `range`, after it could not be written.
    fn drop_clean(&mut self, range: ByteRange) {
        let mut dropped: Vec<PageRange> = Vec::new();
        self.core.handle_forget(range, &mut dropped);
    }
}

/// The slices that make up `len` bytes after `skip` bytes of `pieces`.
fn slices_of(pieces: &[bytes::Bytes], skip: u64, len: u64) -> Vec<std::io::IoSlice<'_>> {
    let (mut skip, mut left) = (skip as usize, len as usize);
    let mut slices = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if left == 0 {
            break;
        }
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let part = &piece[skip..piece.len().min(skip.saturating_add(left))];
        left -= part.len();
        skip = 0;
        slices.push(std::io::IoSlice::new(part));
    }
    slices
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
