//! A node in memory: its attributes, extended attributes and, of a file, its content.

use super::content::{Content, Space};
use crate::store::{Errno, Result, StoreFile};
use crate::wire::{
    Access, Allocate, Attr, Caller, FileId, Kind, Make, SetAttr, SetTime, Time, XATTR_BYTES_MAX,
    XattrMode,
};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The most bytes the names of a node's extended attributes take, each with its NUL (Linux:
/// `XATTR_LIST_MAX`).
const XATTR_NAMES_MAX: usize = 65536;
/// The longest name of an extended attribute, in bytes (Linux: `XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;
/// What a directory shows as its size, in bytes.
const DIRECTORY_BYTES: u64 = 4096;

/// A clock that never gives the same time twice, so that any change shows in the times of a node.
#[derive(Debug, Default)]
pub(super) struct Clock(AtomicU64);

impl Clock {
    /// Nanoseconds since 1970.
    pub(super) fn tick(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_nanos() as u64); // holds until the year 2554
        let later = |last: u64| Some(now.max(last + 1));
        // Relaxed: the order of ticks is that of this one variable.
        match self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later)
        {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    fn now(&self) -> Time {
        let nanos = self.tick();
        Time {
            secs: (nanos / 1_000_000_000) as i64,
            nanos: (nanos % 1_000_000_000) as u32,
        }
    }
}

/// What a node is besides its attributes.
enum Body {
    File(Content),
    Symlink(Vec<u8>),
    Device(u64),
    Other,
}

struct State {
    mode: u16,
    owner: Caller,
    nlink: u32,
    atime: Time,
    mtime: Time,
    ctime: Time,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    body: Body,
}

/// A node.
pub(super) struct Inode {
    pub(super) id: FileId,
    kind: Kind,
    clock: Arc<Clock>,
    space: Arc<Space>,
    /// Bytes of `space` that the node holds whatever happens to it.
    cost: u64,
    state: RwLock<State>,
}

impl Inode {
    /// A node without a name. Takes `cost` bytes of space, and more for the content of a link.
    pub(super) fn new(
        ino: u64,
        make: &Make,
        mode: u16,
        owner: Caller,
        clock: Arc<Clock>,
        (space, cost): (Arc<Space>, u64),
    ) -> Result<Inode> {
        let (kind, body) = match make {
            Make::File => (Kind::File, Body::File(Content::new(space.clone()))),
            Make::Directory => (Kind::Directory, Body::Other),
            Make::Symlink(target) => (Kind::Symlink, Body::Symlink(target.clone())),
            Make::Fifo => (Kind::Fifo, Body::Other),
            Make::Socket => (Kind::Socket, Body::Other),
            Make::CharDevice(number) => (Kind::CharDevice, Body::Device(*number)),
            Make::BlockDevice(number) => (Kind::BlockDevice, Body::Device(*number)),
        };
        let cost = match &body {
            Body::Symlink(target) => cost + target.len() as u64,
            _ => cost,
        };
        space.take(cost)?;
        let now = clock.now();
        let state = State {
            mode: mode & 0o7777,
            owner,
            nlink: 0,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: BTreeMap::new(),
            body,
        };
        Ok(Inode {
            id: FileId {
                dev: 0,
                ino,
                born: clock.tick(),
            },
            kind,
            clock,
            space,
            cost,
            state: RwLock::new(state),
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn attr(&self) -> Attr {
        self.attr_of(&self.state.read())
    }

    fn attr_of(&self, state: &State) -> Attr {
        let (size, blocks) = match &state.body {
            Body::File(content) => (content.size(), content.blocks()),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Other if self.kind == Kind::Directory => (DIRECTORY_BYTES, DIRECTORY_BYTES / 512),
            Body::Device(_) | Body::Other => (0, 0),
        };
        Attr {
            id: self.id,
            kind: self.kind,
            mode: state.mode,
            nlink: state.nlink,
            uid: state.owner.uid,
            gid: state.owner.gid,
            rdev: match state.body {
                Body::Device(number) => number,
                _ => 0,
            },
            size,
            blocks,
            blksize: 4096,
            atime: state.atime,
            mtime: state.mtime,
            ctime: state.ctime,
        }
    }

    /// As [`crate::store::Store::set_attr`].
    pub(super) fn set_attr(&self, set: &SetAttr) -> Result<Attr> {
        for time in [set.atime, set.mtime] {
            if let Some(SetTime::At(Time { nanos, .. })) = time
                && nanos >= 1_000_000_000
            {
                return Err(Errno::INVAL);
            }
        }
        let state = &mut *self.state.write();
        if *set == SetAttr::default() {
            return Ok(self.attr_of(state));
        }
        let now = self.clock.now();
        if let Some(size) = set.size {
            content_mut(self.kind, state)?.set_size(size)?;
            state.mtime = now;
        }
        if set.uid.is_some() || set.gid.is_some() {
            state.owner.uid = set.uid.unwrap_or(state.owner.uid);
            state.owner.gid = set.gid.unwrap_or(state.owner.gid);
            if self.kind != Kind::Directory {
                // Who gets a program does not get the rights it ran with (chown(2)).
                let set_gid = if state.mode & 0o010 != 0 { 0o2000 } else { 0 };
                state.mode &= !(0o4000 | set_gid);
            }
        }
        state.mode = set.mode.map_or(state.mode, |mode| mode & 0o7777);
        let time = |set, old| match set {
            Some(SetTime::Now) => now,
            Some(SetTime::At(time)) => time,
            None => old,
        };
        state.atime = time(set.atime, state.atime);
        state.mtime = time(set.mtime, state.mtime);
        state.ctime = now;
        Ok(self.attr_of(state))
    }

    /// Adds to the number of names, and returns it.
    pub(super) fn link(&self, more: i32) -> u32 {
        let mut state = self.state.write();
        state.nlink = state.nlink.saturating_add_signed(more);
        state.ctime = self.clock.now();
        state.nlink
    }

    /// Something of it has changed.
    pub(super) fn touch(&self) {
        self.state.write().ctime = self.clock.now();
    }

    /// Its content, or its entries, have changed.
    pub(super) fn touch_content(&self) {
        let mut state = self.state.write();
        state.mtime = self.clock.now();
        state.ctime = state.mtime;
    }

    /// Content of a symbolic link.
    pub(super) fn target(&self) -> Result<Vec<u8>> {
        match &self.state.read().body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        let state = self.state.read();
        state.xattrs.get(name).cloned().ok_or(Errno::NODATA)
    }

    pub(super) fn list_xattr(&self) -> Vec<u8> {
        let state = self.state.read();
        let names = state.xattrs.keys().flat_map(|name| [name, &b"\0"[..]]);
        names.flatten().copied().collect()
    }

    pub(super) fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        if name.starts_with(b"system.") {
            return Err(Errno::OPNOTSUPP); // access control lists: nothing here would heed them
        }
        if name.is_empty() || name.len() > XATTR_NAME_MAX || name.contains(&0) {
            return Err(Errno::RANGE);
        }
        if value.len() > XATTR_BYTES_MAX {
            return Err(Errno::TOOBIG);
        }
        let state = &mut *self.state.write();
        let old = match (state.xattrs.get(name), mode) {
            (Some(_), XattrMode::Create) => return Err(Errno::EXIST),
            (None, XattrMode::Replace) => return Err(Errno::NODATA),
            (old, _) => old.map_or(0, |old| xattr_cost(name, old)),
        };
        let names: usize = state.xattrs.keys().map(|name| name.len() + 1).sum();
        if old == 0 && names + name.len() + 1 > XATTR_NAMES_MAX {
            return Err(Errno::NOSPC);
        }
        self.space.take(xattr_cost(name, value))?;
        self.space.give(old);
        state.xattrs.insert(name.to_vec(), value.to_vec());
        state.ctime = self.clock.now();
        Ok(())
    }

    pub(super) fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let state = &mut *self.state.write();
        let value = state.xattrs.remove(name).ok_or(Errno::NODATA)?;
        self.space.give(xattr_cost(name, &value));
        state.ctime = self.clock.now();
        Ok(())
    }

    /// Changes the content of a file.
    fn change(&self, change: impl FnOnce(&mut Content) -> Result<()>) -> Result<Attr> {
        let state = &mut *self.state.write();
        change(content_mut(self.kind, state)?)?;
        state.mtime = self.clock.now();
        state.ctime = state.mtime;
        Ok(self.attr_of(state))
    }

    /// Looks at the content of a file.
    fn look<T>(&self, look: impl FnOnce(&Content) -> T) -> Result<T> {
        match &self.state.read().body {
            Body::File(content) => Ok(look(content)),
            _ => Err(not_a_file(self.kind)),
        }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let xattrs = self.state.get_mut().xattrs.iter();
        let xattrs: u64 = xattrs.map(|(name, value)| xattr_cost(name, value)).sum();
        self.space.give(self.cost + xattrs);
    }
}

fn xattr_cost(name: &[u8], value: &[u8]) -> u64 {
    (name.len() + value.len()) as u64
}

fn content_mut(kind: Kind, state: &mut State) -> Result<&mut Content> {
    match &mut state.body {
        Body::File(content) => Ok(content),
        _ => Err(not_a_file(kind)),
    }
}

fn not_a_file(kind: Kind) -> Errno {
    match kind {
        Kind::Directory => Errno::ISDIR,
        _ => Errno::INVAL,
    }
}

/// An open file. It holds the node, so that both last until they are closed.
pub(super) struct OpenFile {
    inode: Arc<Inode>,
    access: Access,
}

impl OpenFile {
    /// Opens a node. `EISDIR` or `EINVAL` if it is no regular file.
    pub(super) fn new(inode: Arc<Inode>, access: Access) -> Result<OpenFile> {
        match inode.kind {
            Kind::File => Ok(OpenFile { inode, access }),
            kind => Err(not_a_file(kind)),
        }
    }

    fn check_writable(&self) -> Result<()> {
        match self.access {
            Access::Write => Ok(()),
            Access::Read => Err(Errno::BADF),
        }
    }
}

impl StoreFile for OpenFile {
    fn attr(&self) -> Result<Attr> {
        Ok(self.inode.attr())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<Attr> {
        self.inode.set_attr(set)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.inode.look(|content| content.read_at(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_writable()?;
        let write = |content: &mut Content| content.write_at(buf, offset);
        self.inode.change(write).map(drop)
    }

    fn zero_at(&self, start: u64, end: u64) -> Result<()> {
        self.check_writable()?;
        let zero = |content: &mut Content| content.zero_at(start, end);
        self.inode.change(zero).map(drop)
    }

    fn allocate(&self, start: u64, end: u64, mode: Allocate) -> Result<Attr> {
        self.check_writable()?;
        self.inode.change(|content| match mode {
            Allocate::Extend => content.reserve(start, end, true),
            Allocate::KeepSize => content.reserve(start, end, false),
            Allocate::PunchHole => content.punch_hole(start, end),
            Allocate::ZeroExtend => content.zero_at(start, end),
            Allocate::ZeroKeepSize => content.zero_keeping_size(start, end),
        })
    }

    fn next_data(&self, offset: u64) -> Result<u64> {
        self.inode.look(|content| content.next_data(offset))?
    }

    fn next_hole(&self, offset: u64) -> Result<u64> {
        self.inode.look(|content| content.next_hole(offset))?
    }

    fn list_xattr(&self) -> Result<Vec<u8>> {
        Ok(self.inode.list_xattr())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
}
