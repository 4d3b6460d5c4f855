//! A replica of an authority's tree: names, attributes and copies of regions, kept coherent.
//!
//! What a front end calls. Calls that may have to wait for the authority are `async` and finish at their
//! first poll where everything is here; the two on the hot path have a form that never waits
//! ([`Replica::try_read`], [`Replica::try_write`]).

use crate::store::{Errno, Result};
use crate::transport::Dialer;
use crate::units::ByteRange;
use crate::wire::{
    Allocate, Attr, Caller, Make, Name, RelPath, RenameMode, SetAttr, StatFs, XattrMode,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A node's number on this mount, as `st_ino` shows it. [`ROOT`] is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeNo(pub u64);

/// The root of the mount.
pub const ROOT: NodeNo = NodeNo(1);

/// An open file or directory on this mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleNo(pub u64);

/// How a replica works.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Send no change.
    pub read_only: bool,
    /// Which part of the export is the root.
    pub subtree: RelPath,
    /// Where local copies are kept; `None`: in memory.
    pub cache: Option<PathBuf>,
    /// Stop pulling in the background when local copies hold this many bytes.
    pub cache_bytes_max: u64,
    /// Pull what nobody has asked for yet.
    pub background: bool,
    /// A store through a mapping leaves within this time.
    pub push_interval: Duration,
    /// `--soft`: give `EIO` after this time without an answer; `None`: wait (`--hard`).
    pub soft: Option<Duration>,
    /// Let frames be compressed.
    pub compress: bool,
    /// Writers wait while this many bytes are dirty.
    pub dirty_bytes_max: u64,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        ReplicaOptions {
            read_only: false,
            subtree: RelPath::root(),
            cache: None,
            cache_bytes_max: 16 << 30,
            background: true,
            push_interval: Duration::from_secs(1),
            soft: None,
            compress: true,
            dirty_bytes_max: 256 << 20,
        }
    }
}

/// A node as an answer to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its number.
    pub node: NodeNo,
    /// Tells apart nodes that had the same number one after the other.
    pub generation: u64,
    /// Attributes, owners mapped to this machine.
    pub attr: Attr,
    /// How long the kernel may keep the attributes; names are never to be kept.
    pub ttl: Duration,
}

/// An entry of a directory being read.
#[derive(Clone, Debug)]
pub struct DirItem {
    /// Its name; `.` and `..` come first.
    pub name: std::ffi::OsString,
    /// What it names; its lookup count is raised only by [`Replica::remember`].
    pub entry: Entry,
    /// To go on after this entry.
    pub cursor: u64,
}

/// The kernel's cache above a front end. All of it may block: a replica calls it from one thread of its
/// own, in order, never from a call that a front end made.
pub trait KernelCache: Send + Sync + 'static {
    /// Drop the attributes of a node.
    fn drop_attributes(&self, node: NodeNo);
    /// Drop pages (dirty ones are written back first) and attributes. An `end` of `u64::MAX`: to the end.
    fn drop_pages(&self, node: NodeNo, range: ByteRange);
    /// Put bytes into the page cache. Only while no program has the file open for writing.
    fn put_pages(&self, node: NodeNo, offset: u64, bytes: &[u8]);
    /// Write back pages dirtied through mappings, and wait. `path` is where the node was last seen.
    fn write_back(&self, node: NodeNo, path: &RelPath);
}

/// A replica.
pub struct Replica {}

impl Replica {
    /// Connects, and is let in.
    ///
    /// # Errors
    /// One line for the user.
    pub async fn connect(
        _dialer: Dialer,
        _options: ReplicaOptions,
    ) -> std::result::Result<Arc<Replica>, String> {
        unimplemented!()
    }
    /// From here on there is a kernel to keep coherent. Once.
    pub fn set_kernel(&self, _kernel: Arc<dyn KernelCache>) {
        unimplemented!()
    }
    /// The user the authority runs as, for mapping owners; see [`Replica::set_owner_map`].
    pub fn server_user(&self) -> Caller {
        unimplemented!()
    }
    /// Shows `server`'s files as `local`'s, and the other way round in requests.
    pub fn set_owner_map(&self, _server: Caller, _local: Caller) {
        unimplemented!()
    }
    /// Whether the authority or the options refuse changes.
    pub fn is_read_only(&self) -> bool {
        unimplemented!()
    }

    /// Looks a name up and raises the node's lookup count.
    pub async fn lookup(&self, _dir: NodeNo, _name: &Name) -> Result<Entry> {
        unimplemented!()
    }
    /// The kernel has dropped so many references to a node.
    pub fn forget(&self, _node: NodeNo, _lookups: u64) {
        unimplemented!()
    }
    /// A directory entry was handed to the kernel with its attributes: as [`Replica::lookup`].
    pub fn remember(&self, _node: NodeNo) {
        unimplemented!()
    }
    /// Attributes. What is dirty is pushed first, so that times and size are the authority's.
    pub async fn get_attr(&self, _node: NodeNo) -> Result<Entry> {
        unimplemented!()
    }
    /// Changes attributes; a size also on an open file without permission for its path.
    pub async fn set_attr(
        &self,
        _node: NodeNo,
        _handle: Option<HandleNo>,
        _set: SetAttr,
        _by: Caller,
    ) -> Result<Entry> {
        unimplemented!()
    }
    /// Content of a symbolic link.
    pub async fn read_link(&self, _node: NodeNo) -> Result<Vec<u8>> {
        unimplemented!()
    }
    /// Makes a node; as [`Replica::lookup`] of it.
    pub async fn make(
        &self,
        _dir: NodeNo,
        _name: &Name,
        _make: Make,
        _mode: u16,
        _by: Caller,
    ) -> Result<Entry> {
        unimplemented!()
    }
    /// Makes a regular file and opens it; as [`Replica::lookup`] of it.
    pub async fn create(
        &self,
        _dir: NodeNo,
        _name: &Name,
        _mode: u16,
        _exclusive: bool,
        _by: Caller,
    ) -> Result<(Entry, HandleNo)> {
        unimplemented!()
    }
    /// A further name; as [`Replica::lookup`] of it.
    pub async fn link(&self, _node: NodeNo, _dir: NodeNo, _name: &Name) -> Result<Entry> {
        unimplemented!()
    }
    /// Takes a name away.
    pub async fn remove(&self, _dir: NodeNo, _name: &Name, _directory: bool) -> Result<()> {
        unimplemented!()
    }
    /// Renames.
    pub async fn rename(
        &self,
        _from_dir: NodeNo,
        _from: &Name,
        _to_dir: NodeNo,
        _to: &Name,
        _mode: RenameMode,
    ) -> Result<()> {
        unimplemented!()
    }
    /// Value of an extended attribute.
    pub async fn get_xattr(&self, _node: NodeNo, _name: &[u8]) -> Result<Vec<u8>> {
        unimplemented!()
    }
    /// Names of extended attributes, each followed by NUL.
    pub async fn list_xattr(&self, _node: NodeNo) -> Result<Vec<u8>> {
        unimplemented!()
    }
    /// Sets an extended attribute.
    pub async fn set_xattr(
        &self,
        _node: NodeNo,
        _name: &[u8],
        _value: &[u8],
        _mode: XattrMode,
    ) -> Result<()> {
        unimplemented!()
    }
    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, _node: NodeNo, _name: &[u8]) -> Result<()> {
        unimplemented!()
    }
    /// Of the file system below the store.
    pub async fn stat_fs(&self) -> Result<StatFs> {
        unimplemented!()
    }

    /// Opens a directory: what it lists is as of its last read at cursor 0.
    pub fn open_dir(&self, _dir: NodeNo) -> HandleNo {
        unimplemented!()
    }
    /// Entries after `cursor` (0: from the start, anew), `.` and `..` among them; empty at the end.
    pub async fn read_dir(&self, _handle: HandleNo, _cursor: u64) -> Result<Vec<DirItem>> {
        unimplemented!()
    }
    /// Closes a directory.
    pub fn close_dir(&self, _handle: HandleNo) {
        unimplemented!()
    }
    /// Makes changes to a directory durable.
    pub async fn sync_dir(&self, _dir: NodeNo) -> Result<()> {
        unimplemented!()
    }

    /// Opens a regular file; asks the authority whether the copy is still good. The second value tells
    /// whether the kernel may keep its pages.
    pub async fn open(&self, _node: NodeNo, _read: bool, _write: bool) -> Result<(HandleNo, bool)> {
        unimplemented!()
    }
    /// Closes a file that [`Replica::flush`] was called on; never waits.
    pub fn close(&self, _handle: HandleNo) {
        unimplemented!()
    }
    /// Reads without waiting: `deliver` gets the bytes, fewer than `len` only at the end of the file,
    /// and is not called where `None` is returned: then [`Replica::read`] has to be.
    pub fn try_read<R>(
        &self,
        _handle: HandleNo,
        _offset: u64,
        _len: u32,
        _deliver: impl FnOnce(&[u8]) -> R,
    ) -> Option<Result<R>> {
        unimplemented!()
    }
    /// Waits for the pages, then delivers as [`Replica::try_read`] does.
    pub async fn read<R>(
        &self,
        _handle: HandleNo,
        _offset: u64,
        _len: u32,
        _deliver: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        unimplemented!()
    }
    /// Stores without waiting; `None` where it would have to. `write_back`: it comes from the kernel's
    /// page cache and never waits for room.
    pub fn try_write(
        &self,
        _handle: HandleNo,
        _offset: u64,
        _bytes: &[u8],
        _write_back: bool,
    ) -> Option<Result<()>> {
        unimplemented!()
    }
    /// Stores, waiting for pages it covers in part and for room.
    pub async fn write(
        &self,
        _handle: HandleNo,
        _offset: u64,
        _bytes: &[u8],
        _write_back: bool,
    ) -> Result<()> {
        unimplemented!()
    }
    /// Pushes what is dirty and waits until the authority has it (`close`).
    pub async fn flush(&self, _handle: HandleNo) -> Result<()> {
        unimplemented!()
    }
    /// As [`Replica::flush`], and waits until the authority's store is flushed (`fsync`, `msync`).
    pub async fn sync(&self, _handle: HandleNo, _data_only: bool) -> Result<()> {
        unimplemented!()
    }
    /// `fallocate(2)`.
    pub async fn allocate(
        &self,
        _handle: HandleNo,
        _range: ByteRange,
        _mode: Allocate,
    ) -> Result<()> {
        unimplemented!()
    }
    /// SEEK_DATA or SEEK_HOLE.
    pub async fn seek(&self, _handle: HandleNo, _offset: u64, _data: bool) -> Result<u64> {
        unimplemented!()
    }

    /// Pushes everything and says goodbye. What could not be pushed: a path and why, each.
    pub async fn shut_down(&self, _patience: Duration) -> Vec<(RelPath, Errno)> {
        unimplemented!()
    }
    /// What is going on, for `memfs status`.
    pub fn status(&self) -> Status {
        unimplemented!()
    }
    /// Brings a range of a file in; `progress` is told the bytes present and the bytes in all.
    pub async fn pull(
        &self,
        _node: NodeNo,
        _range: ByteRange,
        _progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<()> {
        unimplemented!()
    }
    /// Drops what is clean of a file, here and in the kernel.
    pub async fn drop_copy(&self, _node: NodeNo) -> Result<()> {
        unimplemented!()
    }
    /// Pushes what is dirty of a file, also what is only in the kernel's pages.
    pub async fn push(&self, _node: NodeNo) -> Result<()> {
        unimplemented!()
    }
    /// Every node that has something dirty.
    pub fn dirty_nodes(&self) -> Vec<NodeNo> {
        unimplemented!()
    }
}

/// State of the link to the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Requests are answered.
    Up,
    /// The connection is gone; copies are still good until the lease runs out.
    Reconnecting,
    /// The connection is gone and so is the lease: everything waits, or fails after `--soft`.
    Lost,
}

/// What a replica is doing.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// `host:port`.
    pub server: String,
    /// State of the link.
    pub link: LinkState,
    /// Round-trip time in microseconds, as QUIC estimates it.
    pub rtt_us: u64,
    /// Bytes pulled since the mount.
    pub pulled_bytes: u64,
    /// Bytes pushed since the mount.
    pub pushed_bytes: u64,
    /// Requests that are waiting for the authority.
    pub waiting: u64,
    /// Regions that are open, or have copies.
    pub regions: Vec<RegionStatus>,
}

/// What a replica knows of a region.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RegionStatus {
    /// Path below the mount.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes present.
    pub present_bytes: u64,
    /// Bytes dirty.
    pub dirty_bytes: u64,
    /// Bytes being pulled or pushed.
    pub in_flight_bytes: u64,
    /// Open handles.
    pub opens: u64,
}
