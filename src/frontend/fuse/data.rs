//! Requests on open files and directories.

use super::convert::{self, errno};
use super::names::Names;
use super::reply;
use super::run::Adapter;
use crate::node::replica::{Backing, DirItem, Entry, HandleNo, NodeNo, Replica};
use crate::units::ByteRange;
use fuser::{
    BackingId, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, OpenAccMode,
    OpenFlags, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyLseek, ReplyOpen,
    ReplyWrite, Request,
};
use parking_lot::Mutex;
use rustix::io::{Errno, Result};
use std::sync::Arc;
use std::time::Duration;

/// What the helper process gets for a file. It is never read from, nor written to.
const HELPER_HANDLE: FileHandle = FileHandle(u64::MAX);
/// The most bytes that one `copy_file_range(2)` copies; the caller comes again for the rest.
const COPY_BYTES_MAX: u64 = 16 << 20;
/// How much of it is in memory at a time.
const COPY_CHUNK_BYTES: u64 = 1 << 20;

/// Entries of a directory that were read and have not been asked for yet.
pub(super) struct Rest {
    /// Of the entry before the first of them.
    cursor: u64,
    items: std::vec::IntoIter<DirItem>,
}

/// An answer that lists a directory; dropped, it is that it was interrupted.
pub(super) struct Listing {
    /// Until it is given.
    reply: Option<ListingReply>,
    /// What it has so far of those that count as looked up.
    remembered: Vec<NodeNo>,
}

enum ListingReply {
    /// READDIR: names and kinds.
    Names(ReplyDirectory),
    /// READDIRPLUS: attributes too, as if each entry had been looked up.
    Attributes(ReplyDirectoryPlus, Arc<Names>, Arc<Replica>),
}

impl Listing {
    pub(super) fn names(reply: ReplyDirectory) -> Listing {
        Listing {
            reply: Some(ListingReply::Names(reply)),
            remembered: Vec::new(),
        }
    }

    pub(super) fn attributes(
        reply: ReplyDirectoryPlus,
        names: Arc<Names>,
        replica: &Arc<Replica>,
    ) -> Listing {
        let replica = Arc::clone(replica);
        Listing {
            reply: Some(ListingReply::Attributes(reply, names, replica)),
            remembered: Vec::new(),
        }
    }

    /// False where there is no room for it any more. A node that is gone is left out.
    async fn add(&mut self, replica: &Replica, item: &DirItem, current: bool) -> Result<bool> {
        match &mut self.reply {
            None => Ok(false),
            Some(ListingReply::Names(reply)) => {
                let node = INodeNo(item.entry.node.0);
                let kind = convert::file_type(item.entry.attr.kind);
                Ok(!reply.add(node, item.cursor, kind, &item.name))
            }
            Some(ListingReply::Attributes(reply, names, _)) => {
                // Those of when it was listed may be older than a store that has ended since, and the
                // kernel would cut its pages to the size it is told.
                let entry = match replica.cached_entry(item.entry.node) {
                    Some(entry) => Ok(entry),
                    None => replica.get_attr(item.entry.node).await,
                };
                match entry {
                    Ok(mut entry) => {
                        if !current {
                            entry.ttl = Duration::ZERO;
                        }
                        let added = add_entry(reply, names, item, &entry);
                        if added && item.name != "." && item.name != ".." {
                            replica.remember(entry.node);
                            self.remembered.push(entry.node);
                        }
                        Ok(added)
                    }
                    Err(Errno::NOENT | Errno::STALE) => Ok(true),
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn ok(mut self) {
        match self.reply.take() {
            Some(ListingReply::Names(reply)) => reply.ok(),
            Some(ListingReply::Attributes(reply, ..)) => reply.ok(),
            None => {}
        }
    }

    fn error(&mut self, error: Errno) {
        match self.reply.take() {
            Some(ListingReply::Names(reply)) => reply.error(errno(error)),
            Some(ListingReply::Attributes(reply, _, replica)) => {
                reply.error(errno(error));
                let remembered = self.remembered.drain(..);
                remembered.for_each(|node| replica.forget(node, 1));
            }
            None => {}
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.error(Errno::INTR);
    }
}

/// Adds an entry with attributes. False where there is no room for it any more.
fn add_entry(reply: &mut ReplyDirectoryPlus, names: &Names, item: &DirItem, entry: &Entry) -> bool {
    let (node, attr) = (INodeNo(entry.node.0), convert::file_attr(entry));
    // One time for name and attributes.
    let ttl = names.ttl(entry.ttl);
    let generation = Generation(entry.generation);
    !reply.add(node, item.cursor, &item.name, &ttl, &attr, generation)
}

impl Adapter {
    pub(super) fn open_file(
        &self,
        request: &Request,
        node: NodeNo,
        flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        let mode = flags.acc_mode();
        let (read, write) = (mode != OpenAccMode::O_WRONLY, mode != OpenAccMode::O_RDONLY);
        if self.is_helper(request) && !write {
            let opened = FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE;
            return reply.opened(HELPER_HANDLE, opened);
        }
        // Also what cannot be written through is flushed when it is closed: its locks end then.
        let mut opened = FopenFlags::empty();
        let (replica, lends) = (Arc::clone(&self.replica), self.lends);
        let lender = Arc::clone(&replica);
        let work = async move { replica.open(node, read, write).await };
        let answer = move |outcome| {
            match outcome {
                Ok((handle, keep)) => {
                    let lent = lends.then(|| lend(&lender, handle, &reply)).flatten();
                    match lent.as_ref().and_then(|lent| lent.downcast_ref()) {
                        Some(lent) => reply.opened_passthrough(FileHandle(handle.0), opened, lent),
                        None => {
                            // Not for what is lent: the kernel would refuse the open.
                            opened.set(FopenFlags::FOPEN_KEEP_CACHE, keep);
                            reply.opened(FileHandle(handle.0), opened);
                        }
                    }
                }
                Err(error) => reply.error(errno(error)),
            }
        };
        let undo = |replica: &Replica, (handle, _)| replica.close(handle);
        self.run_to_end(request, work, answer, undo);
    }

    pub(super) fn close_file(&self, handle: HandleNo, reply: ReplyEmpty) {
        if handle.0 != HELPER_HANDLE.0 {
            self.replica.close(handle);
        }
        reply.ok();
    }

    pub(super) fn read_file(
        &self,
        request: &Request,
        handle: HandleNo,
        offset: u64,
        len: u32,
        reply: ReplyData,
    ) {
        let mut unanswered = Some(reply);
        let answer = |bytes: &[u8]| {
            if let Some(reply) = unanswered.take() {
                reply.data(bytes);
            }
        };
        let result = self.replica.try_read(handle, offset, len, answer);
        let Some(reply) = unanswered else { return };
        match result {
            Some(Err(error)) => reply.error(errno(error)),
            Some(Ok(())) => reply.data(&[]),
            None => {
                let replica = Arc::clone(&self.replica);
                let reply = Arc::new(Mutex::new(Some(reply)));
                let work = wait_and_read(replica, handle, offset, len, reply.clone());
                self.run(request, work, move |result| {
                    let Some(reply) = reply.lock().take() else {
                        return;
                    };
                    match result {
                        Ok(()) => reply.data(&[]),
                        Err(error) => reply.error(errno(error)),
                    }
                });
            }
        }
    }

    pub(super) fn write_file(
        &self,
        request: &Request,
        handle: HandleNo,
        offset: u64,
        bytes: &[u8],
        write_back: bool,
        reply: ReplyWrite,
    ) {
        let written = bytes.len() as u32;
        match self.replica.try_write(handle, offset, bytes, write_back) {
            Some(Ok(())) => reply.written(written),
            Some(Err(error)) => reply.error(errno(error)),
            None => {
                let (replica, bytes) = (Arc::clone(&self.replica), bytes.to_vec());
                let work = async move { replica.write(handle, offset, &bytes, write_back).await };
                self.run(request, work, move |outcome| match outcome {
                    Ok(()) => reply.written(written),
                    Err(error) => reply.error(errno(error)),
                });
            }
        }
    }

    pub(super) fn allocate(
        &self,
        request: &Request,
        handle: HandleNo,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let range = ByteRange::at(offset, len).ok_or(Errno::FBIG);
        let (range, mode) = match range.and_then(|range| Ok((range, convert::allocate(mode)?))) {
            Ok(wanted) => wanted,
            Err(error) => return reply.error(errno(error)),
        };
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.allocate(handle, range, mode).await };
        let answer = move |outcome| reply::empty(reply, outcome);
        self.run_to_end(request, work, answer, |_, ()| ());
    }

    pub(super) fn seek(
        &self,
        request: &Request,
        handle: HandleNo,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(errno(Errno::INVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(errno(Errno::NXIO));
        };
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.seek(handle, offset, data).await };
        self.run(request, work, move |found| match found.map(i64::try_from) {
            Ok(Ok(offset)) => reply.offset(offset),
            Ok(Err(_)) => reply.error(errno(Errno::OVERFLOW)),
            Err(error) => reply.error(errno(error)),
        });
    }

    pub(super) fn copy_range(
        &self,
        request: &Request,
        from: (HandleNo, u64),
        to: (HandleNo, u64),
        len: u64,
        reply: ReplyWrite,
    ) {
        let replica = Arc::clone(&self.replica);
        let len = len.min(COPY_BYTES_MAX);
        let work = async move { copy(&replica, from, to, len).await };
        self.run(request, work, move |outcome| match outcome {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(errno(error)),
        });
    }

    pub(super) fn read_directory(
        &self,
        request: &Request,
        handle: HandleNo,
        cursor: u64,
        reply: Listing,
    ) {
        let rests = Arc::clone(&self.rests);
        let rest = rests.lock().remove(&handle);
        let replica = Arc::clone(&self.replica);
        let work = async move {
            // At 0 the listing begins anew.
            let rest = rest.filter(|rest| cursor != 0 && rest.cursor == cursor);
            let rest = rest.unwrap_or_else(|| Rest {
                cursor,
                items: Vec::new().into_iter(),
            });
            if let Some(rest) = fill(&replica, handle, rest, reply).await {
                rests.lock().insert(handle, rest);
            }
            Ok(())
        };
        // What it answers by itself is what it was given up with as well.
        self.run(request, work, |_| ());
    }

    pub(super) fn close_directory(&self, handle: HandleNo, reply: ReplyEmpty) {
        self.names.asked_by(handle);
        self.rests.lock().remove(&handle);
        self.replica.close_dir(handle);
        reply.ok();
    }
}

/// Whether the kernel can read a file of ours instead of asking. Not one on a stacked file system, so that this one can
/// be below such a one.
pub(super) fn may_lend(config: &mut KernelConfig) -> bool {
    let passthrough = InitFlags::FUSE_PASSTHROUGH;
    let may = config.add_capabilities(passthrough).is_ok() && config.set_max_stack_depth(1).is_ok();
    if !may {
        tracing::debug!("the kernel cannot read copies itself: that needs Linux 6.9");
    }
    may
}

/// A [`BackingId`], if the kernel is to read the copy itself.
fn lend(replica: &Replica, handle: HandleNo, reply: &ReplyOpen) -> Option<Backing> {
    replica.lend(handle, |copy| {
        let backing: BackingId = reply.open_backing(copy)?;
        Ok(Arc::new(backing))
    })
}

async fn wait_and_read(
    replica: Arc<Replica>,
    handle: HandleNo,
    offset: u64,
    len: u32,
    reply: Arc<Mutex<Option<ReplyData>>>,
) -> Result<()> {
    let answer = |bytes: &[u8]| {
        if let Some(reply) = reply.lock().take() {
            reply.data(bytes);
        }
    };
    replica.read(handle, offset, len, answer).await
}

/// Copies up to `len` bytes, fewer at the end of the source. The kernel has written back what it had of both.
async fn copy(
    replica: &Replica,
    (from, from_offset): (HandleNo, u64),
    (to, to_offset): (HandleNo, u64),
    len: u64,
) -> Result<u64> {
    let mut copied = 0;
    while copied < len {
        let want = COPY_CHUNK_BYTES.min(len - copied) as u32;
        let chunk = async {
            let start = from_offset.checked_add(copied).ok_or(Errno::OVERFLOW)?;
            let bytes = replica.read(from, start, want, <[u8]>::to_vec).await?;
            let start = to_offset.checked_add(copied).ok_or(Errno::FBIG)?;
            if !bytes.is_empty() {
                replica.write(to, start, &bytes, false).await?;
            }
            Ok(bytes.len() as u64)
        };
        match chunk.await {
            Ok(0) => break,
            Ok(more) => copied += more,
            // As with write(2), what went well before counts.
            Err(_) if copied > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(copied)
}

/// Answers with as many entries as fit, and returns those that were read and did not.
async fn fill(
    replica: &Replica,
    handle: HandleNo,
    mut rest: Rest,
    mut reply: Listing,
) -> Option<Rest> {
    let mut any = false;
    loop {
        // What was listed before a name changed may be handed out after: the kernel has been told of the change
        // by then, and would keep the name as it was.
        let current = !rest.items.as_slice().is_empty() && replica.is_current(handle).await;
        while let Some(item) = rest.items.as_slice().first() {
            match reply.add(replica, item, current).await {
                Ok(true) => {}
                Ok(false) => {
                    reply.ok();
                    return Some(rest);
                }
                Err(error) => return end_early(any, reply, error),
            }
            any = true;
            rest.cursor = item.cursor;
            rest.items.next();
        }
        match replica.read_dir(handle, rest.cursor).await {
            Ok(items) if items.is_empty() => break,
            Ok(items) => rest.items = items.into_iter(),
            Err(error) => return end_early(any, reply, error),
        }
    }
    reply.ok();
    None
}

/// What there is already is given; the kernel meets the error when it comes again.
fn end_early(any: bool, mut reply: Listing, error: Errno) -> Option<Rest> {
    match any {
        true => reply.ok(),
        false => reply.error(error),
    }
    None
}
