//! The kernel's requests, and the answers to those on names and attributes.

use super::convert::{self, errno};
use super::data::{self, Listing};
use super::locks::Asked;
use super::reply;
use super::run::{Adapter, caller};
use crate::node::replica::{Entry, HandleNo, NodeNo, Replica};
use crate::wire::{Make, SetAttr};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The most bytes of one READ or WRITE.
const TRANSFER_BYTES_MAX: u32 = 1 << 20;
/// How many reads ahead and the like the kernel may have under way.
const BACKGROUND_MAX: u16 = 128;
/// The longest content of a symbolic link, and the longest path.
const LINK_BYTES_MAX: usize = 4095;

/// Capabilities of the kernel that are wanted; each where there is one.
///
/// Not among them: the write-back cache (the kernel would own size and times), the killing of set-uid bits
/// (the kernel asks for it by SETATTR).
const CAPABILITIES: [InitFlags; 9] = [
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_NO_EXPORT_SUPPORT,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
];

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!("the kernel does not have {capability:?}");
            }
        }
        self.lends = self.replica.lends() && data::may_lend(config);
        // None of these is out of bounds, but for the reading ahead in an older kernel.
        let _ = config.set_max_write(TRANSFER_BYTES_MAX);
        if let Err(allowed) = config.set_max_readahead(TRANSFER_BYTES_MAX) {
            let _ = config.set_max_readahead(allowed);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        if self.replica.keeps_names() {
            self.names.keep(config.kernel_abi());
        }
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = match convert::name(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(error)),
        };
        // What programs have stored is handed over also while the other side is silent.
        if self.is_helper(request)
            && let Some(entry) = self.replica.lookup_known(NodeNo(dir.0), &name)
        {
            return reply::entry(reply, &self.names, Ok(entry));
        }
        let (replica, names) = (Arc::clone(&self.replica), Arc::clone(&self.names));
        let absent_ttl = replica.absent_ttl();
        self.run(
            request,
            async move { replica.lookup(NodeNo(dir.0), &name).await },
            move |found| match found {
                Err(Errno::NOENT) => reply::absent(reply, &names, absent_ttl),
                found => reply::entry(reply, &names, found),
            },
        );
    }

    fn forget(&self, _request: &Request, node: INodeNo, lookups: u64) {
        self.replica.forget(NodeNo(node.0), lookups);
    }

    fn getattr(
        &self,
        request: &Request,
        node: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        if self.is_helper(request)
            && let Some(entry) = self.replica.known_entry(NodeNo(node.0))
        {
            return reply::attr(reply, Ok(entry));
        }
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.get_attr(NodeNo(node.0)).await };
        self.run(request, work, move |entry| reply::attr(reply, entry));
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(convert::permissions),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let (replica, by) = (Arc::clone(&self.replica), caller(request));
        let handle = handle.map(|handle| HandleNo(handle.0));
        self.locking(NodeNo(node.0));
        let work = async move { replica.set_attr(NodeNo(node.0), handle, set, by).await };
        let answer = move |entry| reply::attr(reply, entry);
        self.run_to_end(request, work, answer, |_, _| ());
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.read_link(NodeNo(node.0)).await };
        self.run(request, work, move |content| match content {
            Ok(content) => reply.data(&content),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match convert::make(mode, rdev) {
            Ok(make) => self.make(request, dir, name, make, mode, reply),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mkdir(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, dir, name, Make::Directory, mode, reply);
    }

    fn symlink(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        if target.len() > LINK_BYTES_MAX {
            return reply.error(errno(Errno::NAMETOOLONG));
        }
        let make = Make::Symlink(target.to_vec());
        self.make(request, dir, name, make, 0o777, reply);
    }

    fn unlink(&self, request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(request, dir, name, false, reply);
    }

    fn rmdir(&self, request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(request, dir, name, true, reply);
    }

    fn rename(
        &self,
        request: &Request,
        from_dir: INodeNo,
        from: &OsStr,
        to_dir: INodeNo,
        to: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let names = convert::name(from)
            .and_then(|from| Ok((from, convert::name(to)?, convert::rename_mode(flags)?)));
        let (from, to, mode) = match names {
            Ok(names) => names,
            Err(error) => return reply.error(errno(error)),
        };
        let (from_dir, to_dir) = (NodeNo(from_dir.0), NodeNo(to_dir.0));
        self.locking(from_dir);
        self.locking(to_dir);
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.rename(from_dir, &from, to_dir, &to, mode).await };
        let answer = move |renamed| reply::empty(reply, renamed);
        self.run_to_end(request, work, answer, |_, ()| ());
    }

    fn link(
        &self,
        request: &Request,
        node: INodeNo,
        dir: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = match convert::name(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(error)),
        };
        let replica = Arc::clone(&self.replica);
        let names = self.locking(NodeNo(dir.0));
        self.run_to_end(
            request,
            async move { replica.link(NodeNo(node.0), NodeNo(dir.0), &name).await },
            move |linked| reply::entry(reply, &names, linked),
            |replica, entry| replica.forget(entry.node, 1),
        );
    }

    fn statfs(&self, request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.stat_fs().await };
        self.run(request, work, move |outcome| match outcome {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_bytes,
                s.name_bytes_max,
                s.block_bytes,
            ),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        room: u32,
        reply: ReplyXattr,
    ) {
        let (replica, name) = (Arc::clone(&self.replica), name.as_bytes().to_vec());
        let work = async move { replica.get_xattr(NodeNo(node.0), &name).await };
        self.run(request, work, move |value| reply::xattr(reply, room, value));
    }

    fn listxattr(&self, request: &Request, node: INodeNo, room: u32, reply: ReplyXattr) {
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.list_xattr(NodeNo(node.0)).await };
        self.run(request, work, move |names| reply::xattr(reply, room, names));
    }

    fn setxattr(
        &self,
        request: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match convert::xattr_mode(flags) {
            Ok(mode) => mode,
            Err(error) => return reply.error(errno(error)),
        };
        let replica = Arc::clone(&self.replica);
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.locking(NodeNo(node.0));
        let work = async move { replica.set_xattr(NodeNo(node.0), &name, &value, mode).await };
        let answer = move |set| reply::empty(reply, set);
        self.run_to_end(request, work, answer, |_, ()| ());
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (replica, name) = (Arc::clone(&self.replica), name.as_bytes().to_vec());
        self.locking(NodeNo(node.0));
        let work = async move { replica.remove_xattr(NodeNo(node.0), &name).await };
        let answer = move |removed| reply::empty(reply, removed);
        self.run_to_end(request, work, answer, |_, ()| ());
    }

    fn create(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = match convert::name(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(error)),
        };
        let (replica, by) = (Arc::clone(&self.replica), caller(request));
        let (mode, exclusive) = (convert::permissions(mode), flags & libc::O_EXCL != 0);
        let read = flags & libc::O_ACCMODE != libc::O_WRONLY;
        self.locking(NodeNo(dir.0));
        let dir = NodeNo(dir.0);
        let work = async move { replica.create(dir, &name, mode, exclusive, read, by).await };
        let undo = |replica: &Replica, (entry, handle): (Entry, HandleNo)| {
            replica.close(handle);
            replica.forget(entry.node, 1);
        };
        let answer = move |created: Result<(Entry, HandleNo), Errno>| {
            match created {
                Ok((entry, handle)) => reply.created(
                    // Stands for the attributes as well, which an inode that is new is not to keep.
                    &Duration::ZERO,
                    &convert::file_attr(&entry),
                    Generation(entry.generation),
                    FileHandle(handle.0),
                    fuser::FopenFlags::FOPEN_KEEP_CACHE,
                ),
                Err(error) => reply.error(errno(error)),
            }
        };
        self.run_to_end(request, work, answer, undo);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.open_file(request, NodeNo(node.0), flags, reply);
    }

    fn read(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read_file(request, HandleNo(handle.0), offset, len, reply);
    }

    fn write(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write_back = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.write_file(
            request,
            HandleNo(handle.0),
            offset,
            bytes,
            write_back,
            reply,
        );
    }

    fn flush(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let replica = Arc::clone(&self.replica);
        let handle = HandleNo(handle.0);
        let work = async move { replica.flush_and_unlock(handle, owner.0).await };
        self.run(request, work, move |flushed| reply::empty(reply, flushed));
    }

    fn getlk(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        last: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let handle = HandleNo(handle.0);
        let asked = Asked {
            handle,
            owner,
            start,
            last,
            kind,
            pid,
        };
        self.get_lock(request, asked, reply);
    }

    fn setlk(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        last: u64,
        kind: i32,
        pid: u32,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let handle = HandleNo(handle.0);
        let asked = Asked {
            handle,
            owner,
            start,
            last,
            kind,
            pid,
        };
        self.set_lock(request, asked, wait, reply);
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.close_file(HandleNo(handle.0), reply);
    }

    fn fsync(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let replica = Arc::clone(&self.replica);
        let work = async move { replica.sync(HandleNo(handle.0), data_only).await };
        self.run(request, work, move |synced| reply::empty(reply, synced));
    }

    fn opendir(&self, _request: &Request, dir: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.replica.open_dir(NodeNo(dir.0)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), fuser::FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        _dir: INodeNo,
        handle: FileHandle,
        cursor: u64,
        reply: ReplyDirectory,
    ) {
        self.names.asked_by(HandleNo(handle.0));
        self.read_directory(request, HandleNo(handle.0), cursor, Listing::names(reply));
    }

    fn readdirplus(
        &self,
        request: &Request,
        dir: INodeNo,
        handle: FileHandle,
        cursor: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let handle = HandleNo(handle.0);
        self.names.asked_by(handle);
        self.names.listing(handle, NodeNo(dir.0));
        let names = Arc::clone(&self.names);
        let listing = Listing::attributes(reply, names, &self.replica);
        self.read_directory(request, handle, cursor, listing);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _dir: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.close_directory(HandleNo(handle.0), reply);
    }

    fn fsyncdir(
        &self,
        request: &Request,
        dir: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let replica = Arc::clone(&self.replica);
        self.locking(NodeNo(dir.0));
        let work = async move { replica.sync_dir(NodeNo(dir.0)).await };
        self.run(request, work, move |synced| reply::empty(reply, synced));
    }

    fn fallocate(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.allocate(request, HandleNo(handle.0), offset, len, mode, reply);
    }

    fn lseek(
        &self,
        request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.seek(request, HandleNo(handle.0), offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _from_node: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _to_node: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let from = (HandleNo(from.0), from_offset);
        let to = (HandleNo(to.0), to_offset);
        self.copy_range(request, from, to, len, reply);
    }
}
