//! The kernel's requests, and the answers to those on names and attributes.

use super::convert::{self, errno};
use super::data::{self, Listing};
use super::locks::Asked;
use super::reply;
use super::run::{Adapter, caller};
use crate::node::replica::{HandleNo, NodeNo};
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
        self.run(async move {
            match replica.lookup(NodeNo(dir.0), &name).await {
                Err(Errno::NOENT) => reply::absent(reply, &names, replica.absent_ttl()),
                found => reply::entry(reply, &names, found),
            }
        });
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
        self.run(async move { reply::attr(reply, replica.get_attr(NodeNo(node.0)).await) });
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
        self.run(async move {
            let entry = replica.set_attr(NodeNo(node.0), handle, set, by).await;
            reply::attr(reply, entry);
        });
    }

    fn readlink(&self, _request: &Request, node: INodeNo, reply: ReplyData) {
        let replica = Arc::clone(&self.replica);
        self.run(async move {
            match replica.read_link(NodeNo(node.0)).await {
                Ok(content) => reply.data(&content),
                Err(error) => reply.error(errno(error)),
            }
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

    fn unlink(&self, _request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(dir, name, false, reply);
    }

    fn rmdir(&self, _request: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(dir, name, true, reply);
    }

    fn rename(
        &self,
        _request: &Request,
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
        self.run(async move {
            let result = replica.rename(from_dir, &from, to_dir, &to, mode).await;
            reply::empty(reply, result);
        });
    }

    fn link(
        &self,
        _request: &Request,
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
        self.run(async move {
            let linked = replica.link(NodeNo(node.0), NodeNo(dir.0), &name).await;
            reply::entry(reply, &names, linked);
        });
    }

    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let replica = Arc::clone(&self.replica);
        self.run(async move {
            match replica.stat_fs().await {
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
            }
        });
    }

    fn getxattr(
        &self,
        _request: &Request,
        node: INodeNo,
        name: &OsStr,
        room: u32,
        reply: ReplyXattr,
    ) {
        let (replica, name) = (Arc::clone(&self.replica), name.as_bytes().to_vec());
        self.run(async move {
            let value = replica.get_xattr(NodeNo(node.0), &name).await;
            reply::xattr(reply, room, value);
        });
    }

    fn listxattr(&self, _request: &Request, node: INodeNo, room: u32, reply: ReplyXattr) {
        let replica = Arc::clone(&self.replica);
        self.run(async move {
            reply::xattr(reply, room, replica.list_xattr(NodeNo(node.0)).await);
        });
    }

    fn setxattr(
        &self,
        _request: &Request,
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
        self.run(async move {
            let set = replica.set_xattr(NodeNo(node.0), &name, &value, mode).await;
            reply::empty(reply, set);
        });
    }

    fn removexattr(&self, _request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (replica, name) = (Arc::clone(&self.replica), name.as_bytes().to_vec());
        self.locking(NodeNo(node.0));
        self.run(async move {
            reply::empty(reply, replica.remove_xattr(NodeNo(node.0), &name).await);
        });
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
        self.locking(NodeNo(dir.0));
        self.run(async move {
            match replica
                .create(NodeNo(dir.0), &name, mode, exclusive, by)
                .await
            {
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
        });
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.open_file(request, NodeNo(node.0), flags, reply);
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read_file(HandleNo(handle.0), offset, len, reply);
    }

    fn write(
        &self,
        _request: &Request,
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
        self.write_file(HandleNo(handle.0), offset, bytes, write_back, reply);
    }

    fn flush(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let replica = Arc::clone(&self.replica);
        let handle = HandleNo(handle.0);
        self.run(async move {
            reply::empty(reply, replica.flush_and_unlock(handle, owner.0).await);
        });
    }

    fn getlk(
        &self,
        _request: &Request,
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
        self.get_lock(asked, reply);
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
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let replica = Arc::clone(&self.replica);
        self.run(async move {
            reply::empty(reply, replica.sync(HandleNo(handle.0), data_only).await);
        });
    }

    fn opendir(&self, _request: &Request, dir: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.replica.open_dir(NodeNo(dir.0)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), fuser::FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _dir: INodeNo,
        handle: FileHandle,
        cursor: u64,
        reply: ReplyDirectory,
    ) {
        self.names.asked_by(HandleNo(handle.0));
        self.read_directory(HandleNo(handle.0), cursor, Listing::Names(reply));
    }

    fn readdirplus(
        &self,
        _request: &Request,
        dir: INodeNo,
        handle: FileHandle,
        cursor: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let handle = HandleNo(handle.0);
        self.names.asked_by(handle);
        self.names.listing(handle, NodeNo(dir.0));
        let listing = Listing::Attributes(reply, Arc::clone(&self.names));
        self.read_directory(handle, cursor, listing);
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
        _request: &Request,
        dir: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let replica = Arc::clone(&self.replica);
        self.locking(NodeNo(dir.0));
        self.run(async move { reply::empty(reply, replica.sync_dir(NodeNo(dir.0)).await) });
    }

    fn fallocate(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.allocate(HandleNo(handle.0), offset, len, mode, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.seek(HandleNo(handle.0), offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
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
        self.copy_range(from, to, len, reply);
    }
}
