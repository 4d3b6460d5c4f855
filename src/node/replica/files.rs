//! Open files: reading, storing, flushing.

use super::full::{Storing, is_full};
use super::lending::{Way, seek_data};
use super::link::Moment;
use super::mode::Mode;
use super::nodes::Node;
use super::region::{Region, Remote};
use super::unsynced::Syncing;
use super::{HandleNo, NodeNo, Replica, Shared, transfer};
use crate::region::Epoch;
use crate::store::{Errno, Result};
use crate::units::ByteRange;
use crate::wire::{
    Access, Allocate, Answer, Attr, ChangeRequest, HandleId, Kind, ReadRequest, TRANSFER_BYTES_MAX,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A file that a program has open.
pub(super) struct OpenFile {
    pub node: Arc<Node>,
    pub region: Arc<Region>,
    mode: Mode,
    /// How the kernel has it open, once that is known and where it matters.
    pub way: OnceLock<Way>,
    /// A lock that was taken through it may have been somebody else's in the meantime.
    pub lost_lock: AtomicBool,
}

impl OpenFile {
    pub fn may_write(&self) -> bool {
        self.mode.write
    }
}

/// The beginning of a file that comes with opening it, in bytes.
const FIRST_BYTES: u64 = 128 << 10;
/// Chunks that [`Replica::pull`] asks for at once.
const PULL_AHEAD: usize = 8;

impl Shared {
    /// The request to open a file: with its first bytes, unless they will not be read or there is a copy that may
    /// hold them.
    fn opening(&self, node: &Arc<Node>, mode: Mode) -> Result<ReadRequest> {
        let access = mode.access();
        let without = !mode.read
            || node.region.lock().is_some()
            || self
                .cache
                .as_ref()
                .is_some_and(|cache| cache.holds(node.id));
        let node = node.to_wire()?;
        Ok(match without {
            true => ReadRequest::Open { node, access },
            false => ReadRequest::OpenAndPull {
                node,
                access,
                end: FIRST_BYTES,
                compress: self.options.compress,
            },
        })
    }
}

impl Replica {
    /// Opens a regular file; asks the authority whether the copy is still good. The second value tells
    /// whether the kernel may keep its pages.
    pub async fn open(&self, node: NodeNo, read: bool, write: bool) -> Result<(HandleNo, bool)> {
        let node = self.shared.nodes.get(node)?;
        match node.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        if write && self.is_read_only() {
            return Err(Errno::ROFS);
        }
        let mode = Mode { read, write };
        let ask = async {
            if let Some(opened) = self.open_further(&node, mode).await? {
                return Ok(opened);
            }
            let (good, handle, learning, offered, rest) = loop {
                let request = self.shared.opening(&node, mode)?;
                let offered = matches!(request, ReadRequest::OpenAndPull { .. });
                let (at, answer, rest) = self.shared.link.read_on(request).await?;
                let Answer::Opened {
                    handle,
                    attr,
                    epoch,
                    learning,
                    xattrs,
                } = answer
                else {
                    return Err(Errno::PROTO);
                };
                let good = self.shared.adopt(&node, &attr, at);
                if let Some(names) = xattrs {
                    node.learn_xattrs(&names, at);
                }
                let opened = self.opened(&node, handle, &attr, epoch, at, mode).await?;
                if let Some(handle) = opened {
                    break (good, handle, learning, offered, rest);
                }
            };
            let region = self.file(handle)?.region.clone();
            self.shared.learn(&region, learning);
            if offered {
                transfer::take_offer(&self.shared, region, FIRST_BYTES, rest);
            }
            Ok((handle, good && self.shared.kernel_may_keep(&node)))
        };
        let opened = self.or_adrift(ask, self.open_copy(&node, mode)).await?;
        if write && !self.shared.link.is_adrift() {
            self.shared.foresee_store(&node);
        }
        Ok(opened)
    }

    /// Opens a file that is open on this mount already: its handle at the authority serves once more. `None`
    /// where it is not, or that handle is not good for this.
    async fn open_further(&self, node: &Arc<Node>, mode: Mode) -> Result<Option<(HandleNo, bool)>> {
        let access = mode.access();
        let Some(remote) = self.shared.remote_handle_for(node, access).await else {
            return Ok(None);
        };
        let Some(region) = node.region.lock().clone() else {
            return Ok(None);
        };
        // Counted before asking, so that the handle is not closed meanwhile.
        let handle = self.open_region(node, region, mode).await;
        let request = ReadRequest::GetAttr {
            node: node.to_wire_open(),
            handle: Some(remote),
        };
        match self.shared.link.read(request).await {
            Ok((at, Answer::Attr(attr))) => {
                let good = self.shared.adopt(node, &attr, at);
                Ok(Some((handle, good && self.shared.kernel_may_keep(node))))
            }
            outcome => {
                self.close(handle);
                match outcome {
                    Ok(_) => Err(Errno::PROTO),
                    Err(Errno::BADF) => Ok(None),
                    Err(errno) => Err(errno),
                }
            }
        }
    }

    /// Opens a file that is open already, for reading, without asking: for the mount's own process.
    pub fn open_again(&self, node: NodeNo) -> Option<HandleNo> {
        let node = self.shared.nodes.get(node).ok()?;
        let slot = node.region.lock();
        let region = slot.clone()?;
        let open = region.update(|inner| {
            let open = inner.opens > 0;
            inner.opens += u32::from(open);
            open
        });
        drop(slot);
        open.then(|| {
            self.shared.new_file(OpenFile {
                node,
                region,
                mode: Mode {
                    read: true,
                    write: false,
                },
                way: OnceLock::new(),
                lost_lock: AtomicBool::new(false),
            })
        })
    }

    /// The authority has opened a file; `None` where that was in an earlier session.
    pub(super) async fn opened(
        &self,
        node: &Arc<Node>,
        handle: HandleId,
        attr: &Attr,
        epoch: Epoch,
        at: Moment,
        mode: Mode,
    ) -> Result<Option<HandleNo>> {
        let Some(region) = self.shared.region_of(node, attr, epoch, at)? else {
            return Ok(None);
        };
        let access = mode.access();
        let new = Remote {
            handle,
            access,
            generation: at.generation,
        };
        let of = |remote: &Remote| (remote.generation, remote.access);
        let mut remote = region.remote.lock().await;
        let other = match &*remote {
            Some(there) if of(there) >= of(&new) => Some(new),
            _ => remote.replace(new),
        };
        drop(remote);
        if let Some(other) = other {
            self.shared.close_remote(other);
        }
        Ok(Some(self.open_region(node, region, mode).await))
    }

    pub(super) async fn open_region(
        &self,
        node: &Arc<Node>,
        region: Arc<Region>,
        mode: Mode,
    ) -> HandleNo {
        let region = {
            // Under this lock, so that the region is not given up in between.
            let mut slot = node.region.lock();
            let region = slot.get_or_insert(region).clone();
            region.update(|inner| {
                inner.opens += 1;
                inner.mappers += u32::from(mode.may_map());
                inner.core.set_background(self.shared.may_pull_ahead());
            });
            region
        };
        region.use_now(self.shared.uses.fetch_add(1, Ordering::Relaxed));
        if mode.write {
            self.shared.mark_writing(&region);
            region.begin_writing().await;
        }
        self.shared.new_file(OpenFile {
            node: node.clone(),
            region,
            mode,
            way: OnceLock::new(),
            lost_lock: AtomicBool::new(false),
        })
    }

    /// Closes a file that [`Replica::flush`] was called on; never waits.
    pub fn close(&self, handle: HandleNo) {
        let Some(file) = self.shared.files.write().remove(&handle) else {
            return;
        };
        self.release_locks_of(handle, &file.node);
        if file.mode.write {
            file.region.end_writing();
        }
        file.region
            .use_now(self.shared.uses.fetch_add(1, Ordering::Relaxed));
        file.region.update(|inner| {
            inner.opens = inner.opens.saturating_sub(1);
            inner.mappers -= u32::from(file.mode.may_map());
            if let Some(way) = file.way.get() {
                inner.give_back(*way);
            }
            if inner.opens == 0 {
                inner.core.set_background(false);
            }
        });
        file.region.push_due();
        self.shared.forget_if_unlinked(&file.node);
        self.shared.close_remote_if_idle(&file.region);
        self.shared.give_up_copies();
        self.shared.make_room();
    }

    pub(super) fn file(&self, handle: HandleNo) -> Result<Arc<OpenFile>> {
        self.shared
            .files
            .read()
            .get(&handle)
            .cloned()
            .ok_or(Errno::BADF)
    }

    /// As [`Self::file`]; `EIO` if a lock was lost that was taken through it.
    pub(super) fn usable_file(&self, handle: HandleNo) -> Result<Arc<OpenFile>> {
        let file = self.file(handle)?;
        match file.lost_lock.load(Ordering::Acquire) {
            true => Err(Errno::IO),
            false => Ok(file),
        }
    }

    /// What is written back was stored through any descriptor.
    fn file_to_store(&self, handle: HandleNo, write_back: bool) -> Result<Arc<OpenFile>> {
        match write_back {
            true => self.file(handle),
            false => self.usable_file(handle),
        }
    }

    /// Reads without waiting: `deliver` gets the bytes, fewer than `len` only at the end of the file,
    /// and is not called where `None` is returned: then [`Replica::read`] has to be.
    pub fn try_read<R>(
        &self,
        handle: HandleNo,
        offset: u64,
        len: u32,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> Option<Result<R>> {
        if !self.shared.link.may_use_copies() {
            return None;
        }
        match self.usable_file(handle) {
            Ok(file) => file.region.try_read(offset, len, deliver),
            Err(errno) => Some(Err(errno)),
        }
    }

    /// Waits for the pages, then delivers as [`Replica::try_read`] does.
    pub async fn read<R>(
        &self,
        handle: HandleNo,
        offset: u64,
        len: u32,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let file = self.usable_file(handle)?;
        let (mut deliver, mut made_room) = (Some(deliver), false);
        let asked = ByteRange::at(offset, u64::from(len)).ok_or(Errno::FBIG)?;
        self.bounded(async {
            let _waiting = super::link::Waiting::new(&self.shared.link.waiting);
            let _read = file.region.begin_read(asked);
            loop {
                (file.region.wait_until(|inner| !inner.is_storing(asked))).await;
                self.shared.link.copies_usable().await?;
                // It may be known since then.
                self.usable_file(handle)?;
                let mut once = |bytes: &[u8]| deliver.take().map(|deliver| deliver(bytes));
                if let Some(outcome) = file.region.try_read(offset, len, &mut once) {
                    return outcome?.ok_or(Errno::IO);
                }
                match file.region.wait_for(offset, u64::from(len), false).await {
                    Err(errno) if is_full(errno) && made_room => {
                        let bytes = self.shared.read_through(&file.region, asked).await?;
                        return once(&bytes).ok_or(Errno::IO);
                    }
                    Err(errno) if is_full(errno) => {
                        self.shared.disk_is_full().await;
                        made_room = true;
                    }
                    arrived => arrived?,
                }
            }
        })
        .await
    }

    /// Stores without waiting; `None` where it would have to. `write_back`: it comes from the kernel's
    /// page cache and never waits for room.
    pub fn try_write(
        &self,
        handle: HandleNo,
        offset: u64,
        bytes: &[u8],
        write_back: bool,
    ) -> Option<Result<()>> {
        if !write_back && !self.shared.has_room() {
            return None;
        }
        match self.file_to_store(handle, write_back) {
            Ok(file) => match file.region.try_store(offset, bytes) {
                Some(Err(errno)) if is_full(errno) => None,
                Some(Ok(())) => Some(self.stored(&file, offset, bytes, write_back)),
                outcome => outcome,
            },
            Err(errno) => Some(Err(errno)),
        }
    }

    /// Stores, waiting for pages it covers in part and for room.
    pub async fn write(
        &self,
        handle: HandleNo,
        offset: u64,
        bytes: &[u8],
        write_back: bool,
    ) -> Result<()> {
        let file = self.file_to_store(handle, write_back)?;
        let range = ByteRange::at(offset, bytes.len() as u64).ok_or(Errno::FBIG)?;
        self.bounded(async {
            let _hold = (!write_back).then(|| file.region.begin_store(range));
            if !write_back {
                self.shared.wait_for_room(&file.region).await?;
            }
            let mut storing = Storing::default();
            loop {
                file.region.wait_until(|inner| inner.resizing == 0).await;
                let outcome = match file.region.try_store(offset, bytes) {
                    Some(Ok(())) => return self.stored(&file, offset, bytes, write_back),
                    Some(Err(errno)) => Err(errno),
                    None => {
                        let _waiting = super::link::Waiting::new(&self.shared.link.waiting);
                        (file.region.wait_for(offset, bytes.len() as u64, true)).await
                    }
                };
                match outcome {
                    Err(errno) if is_full(errno) && storing.make_room(&self.shared).await => {}
                    outcome => outcome?,
                }
            }
        })
        .await
    }

    fn stored(&self, file: &OpenFile, at: u64, bytes: &[u8], write_back: bool) -> Result<()> {
        if let Some(range) = ByteRange::at(at, bytes.len() as u64).filter(|_| !write_back) {
            self.shared.was_written(&file.node, range);
        }
        Ok(())
    }

    /// Pushes what is dirty and waits until the authority has it (`close`).
    pub async fn flush(&self, handle: HandleNo) -> Result<()> {
        let file = self.file(handle)?;
        self.bounded(self.shared.flush_node(&file.node)).await
    }

    /// As [`Replica::flush`], and waits until the authority's store is flushed (`fsync`, `msync`).
    pub async fn sync(&self, handle: HandleNo, data_only: bool) -> Result<()> {
        let file = self.usable_file(handle)?;
        if self.is_read_only() {
            return Ok(());
        }
        self.bounded(async {
            let make = |handle| ChangeRequest::Sync { handle, data_only };
            let region = &file.region;
            loop {
                self.shared.flush_node(&file.node).await?;
                let syncing = Syncing::begin(region);
                let outcome = self.change_open(&file, Access::Read, make).await;
                let spoken_for = syncing.end(outcome.is_ok());
                let (at, Answer::Attr(attr)) = outcome? else {
                    return Err(Errno::PROTO);
                };
                file.node.adopt_own(&attr, at);
                if spoken_for {
                    break Ok(());
                }
            }
        })
        .await
    }

    /// A request on an open file; its handle is asked for anew where the authority has forgotten it.
    async fn change_open(
        &self,
        file: &OpenFile,
        access: Access,
        make: impl Fn(HandleId) -> ChangeRequest,
    ) -> Result<(Moment, Answer)> {
        loop {
            let handle = self.shared.handle_of(&file.region, access).await?;
            match self.shared.link.change(make(handle)).await {
                Err(Errno::BADF)
                    if self.shared.remote_handle_for(&file.node, access).await != Some(handle) => {}
                outcome => return outcome,
            }
        }
    }

    /// `fallocate(2)`.
    pub async fn allocate(&self, handle: HandleNo, range: ByteRange, mode: Allocate) -> Result<()> {
        let file = self.file(handle)?;
        if !file.mode.write {
            return Err(Errno::BADF);
        }
        self.bounded(async {
            self.shared.flush_node(&file.node).await?;
            let hold = file.region.hold_pushes().await;
            let make = |handle| ChangeRequest::Allocate {
                handle,
                start: range.start,
                end: range.end,
                mode,
            };
            let (at, answer) = self.change_open(&file, Access::Write, make).await?;
            let Answer::Attr(attr) = answer else {
                return Err(Errno::PROTO);
            };
            file.node.adopt_own(&attr, at);
            let mut dropped = Vec::new();
            file.region.update(|inner| {
                if !matches!(mode, Allocate::Extend | Allocate::KeepSize) {
                    inner.invalidate(at, range, &mut dropped);
                }
                inner.adopt_size(at, attr.size)
            })?;
            drop(hold);
            Ok(())
        })
        .await
    }

    /// SEEK_DATA or SEEK_HOLE.
    pub async fn seek(&self, handle: HandleNo, offset: u64, data: bool) -> Result<u64> {
        let file = self.file(handle)?;
        if let Some(found) = file.seek_lent(offset, data) {
            return found;
        }
        self.bounded(async {
            if self.shared.flush_node(&file.node).await.is_err() {
                // What is refused is not at the authority: all of it counts as data.
                let end = file.region.look(|inner| inner.core.size());
                return seek_data(end, offset, data);
            }
            let handle = self.shared.handle_of(&file.region, Access::Read).await?;
            match self
                .shared
                .link
                .read(ReadRequest::Seek {
                    handle,
                    offset,
                    data,
                })
                .await?
            {
                (at, Answer::Offset(offset)) => {
                    file.node.saw(at);
                    Ok(offset)
                }
                _ => Err(Errno::PROTO),
            }
        })
        .await
    }

    /// Brings a range of a file in; `progress` is told the bytes present and the bytes in all.
    pub async fn pull(
        &self,
        node: NodeNo,
        range: ByteRange,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        let (handle, _) = self.open(node, true, false).await?;
        let outcome = self.pull_open(handle, range, progress).await;
        self.close(handle);
        outcome
    }

    async fn pull_open(
        &self,
        handle: HandleNo,
        range: ByteRange,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        let file = self.file(handle)?;
        let range = range.intersect(ByteRange::new(
            0,
            file.region.look(|inner| inner.core.size()),
        ));
        // What is here from before is compared first.
        file.region.update(|inner| inner.core.handle_compare(range));
        self.bounded(async {
            let pages = range.pages_touched();
            let compared = file
                .region
                .wait_until(|inner| !inner.core.old().intersects(pages));
            compared.await;
            Ok(())
        })
        .await?;
        let mut coming = VecDeque::new();
        let (mut asked, mut here) = (range.start, range.start);
        while here < range.end {
            while asked < range.end && coming.len() < PULL_AHEAD {
                let end = range.end.min(asked + TRANSFER_BYTES_MAX);
                coming.push_back((end, file.region.fault(asked, end - asked, false)?));
                asked = end;
            }
            if let Some((end, woken)) = coming.pop_front() {
                if let Some(woken) = woken {
                    self.bounded(async { woken.await.unwrap_or(Err(Errno::IO)) })
                        .await?;
                }
                here = end;
                progress(here - range.start, range.len());
            }
        }
        Ok(())
    }

    /// Pushes what is dirty of a file, also what is only in the kernel's pages.
    pub async fn push(&self, node: NodeNo) -> Result<()> {
        let node = self.shared.nodes.get(node)?;
        // A file that is lent to the kernel cannot be opened for that.
        if let (Some(kernel), Ok(path)) = (self.shared.kernel.get(), node.path())
            && !self.is_read_only()
            && node.region.lock().is_some()
        {
            kernel.write_back(node.no, path).await;
        }
        self.bounded(self.shared.flush_node(&node)).await
    }
}
