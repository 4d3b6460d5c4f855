//! Where an authority keeps the bytes: one narrow trait, one conformance suite for all.
//!
//! A store is a tree of nodes as POSIX knows them. Calls block; the authority makes them from
//! threads that may. A store does not know who caches what: it only has to say the truth each time.
//!
//! Errors are errnos, chosen where they arise; those a caller must expect are named at each call.

#[cfg(test)]
pub(crate) mod conformance;
pub mod directory;
pub mod memory;

use crate::wire::{
    Access, Allocate, Attr, Caller, Capabilities, DirEntry, FileId, Make, Name, Node, RelPath,
    RenameMode, SetAttr, StatFs, XattrMode,
};

/// An errno, as Linux numbers them.
pub type Errno = rustix::io::Errno;
/// The outcome of a call to a store.
pub type Result<T> = std::result::Result<T, Errno>;

/// A tree of files.
///
/// Every call that takes a [`Node`] gives `ESTALE` where another node, or none, is at its path and
/// the store does not know where it went.
pub trait Store: Send + Sync + 'static {
    /// For people: `/srv/data`, `mem://`.
    fn describe(&self) -> String;

    /// What the store can do; the rest gives `EOPNOTSUPP`.
    fn capabilities(&self) -> Capabilities;

    /// The directory at `path` as a store of its own: nothing outside it can be reached.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES`.
    fn subtree(&self, path: &RelPath) -> Result<std::sync::Arc<dyn Store>>;

    /// Attributes of the root.
    fn root(&self) -> Result<Attr>;

    /// Attributes of an entry. `ENOENT` if there is none.
    fn lookup(&self, dir: &Node, name: &Name) -> Result<Attr>;

    /// Attributes of a node.
    fn attr(&self, node: &Node) -> Result<Attr>;

    /// Changes attributes and returns the new ones. Where the store has no owners, changing them
    /// to what they are is allowed, anything else `EPERM`.
    fn set_attr(&self, node: &Node, set: &SetAttr) -> Result<Attr>;

    /// Makes a node that is not a regular file, or one that is and is not opened. The owner is
    /// `by` where the store has owners; the group is the directory's if that is set-gid.
    /// `EEXIST`, `ENOSPC`, `EDQUOT`, `EROFS`, `EACCES`.
    fn make(&self, dir: &Node, name: &Name, make: &Make, mode: u16, by: Caller) -> Result<Attr>;

    /// Makes a regular file and opens it for writing, whatever `mode` says. An existing regular file is
    /// opened as it is unless `exclusive` (`EEXIST`).
    fn create(
        &self,
        dir: &Node,
        name: &Name,
        mode: u16,
        exclusive: bool,
        by: Caller,
    ) -> Result<(Attr, Box<dyn StoreFile>)>;

    /// Opens a regular file. `EACCES`, `EROFS`; `EISDIR` and `EINVAL` for what is not one.
    fn open(&self, node: &Node, access: Access) -> Result<Box<dyn StoreFile>>;

    /// A further name for a node.
    fn link(&self, node: &Node, dir: &Node, name: &Name) -> Result<Attr>;

    /// Takes a name away: an empty directory's if `directory`.
    /// `ENOENT`, `ENOTDIR`, `EISDIR`, `ENOTEMPTY`.
    fn remove(&self, dir: &Node, name: &Name, directory: bool) -> Result<()>;

    /// Renames. `EEXIST`, `ENOTEMPTY`, `EINVAL` (into itself), `EXDEV`.
    fn rename(
        &self,
        from_dir: &Node,
        from: &Name,
        to_dir: &Node,
        to: &Name,
        mode: RenameMode,
    ) -> Result<()>;

    /// Content of a symbolic link.
    fn read_link(&self, node: &Node) -> Result<Vec<u8>>;

    /// Up to `max` entries after `cursor` (0: from the start), without `.` and `..` and extended attributes. An entry that
    /// exists during the whole of a listing is in it once.
    fn read_dir(&self, dir: &Node, cursor: u64, max: usize) -> Result<Vec<DirEntry>>;

    /// Value of an extended attribute. `ENODATA` if there is none.
    fn get_xattr(&self, node: &Node, name: &[u8]) -> Result<Vec<u8>>;

    /// Names of the extended attributes, each followed by NUL.
    fn list_xattr(&self, node: &Node) -> Result<Vec<u8>>;

    /// Sets an extended attribute. `EEXIST`, `ENODATA`.
    fn set_xattr(&self, node: &Node, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;

    /// Removes an extended attribute. `ENODATA`.
    fn remove_xattr(&self, node: &Node, name: &[u8]) -> Result<()>;

    /// Makes changes to a directory's entries durable.
    fn sync_dir(&self, dir: &Node) -> Result<()>;

    /// Of the file system below.
    fn stat_fs(&self) -> Result<StatFs>;

    /// Calls `sink` for what others do to nodes of the tree, as far as the store can notice.
    /// [`Store::observe`] tells which directories matter. May be called once. Changes made through this
    /// store itself may be reported too: the authority tells them apart by their stamps.
    fn watch(&self, sink: Box<dyn Fn(Noticed) + Send + Sync>) -> Result<()>;

    /// Replicas now hold copies from this directory: its entries and what they name are to be
    /// watched until [`Store::unobserve`]. Watching costs the system memory; a store may give up
    /// silently, as a watch is never relied on alone.
    fn observe(&self, dir: &Node);

    /// No replica holds copies from this directory any more.
    fn unobserve(&self, dir: FileId);
}

/// Something was changed in the tree, by somebody else or by the store's own calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Content or attributes of a node; these are its attributes now.
    Changed(Attr),
    /// Entries of a directory; these are the directory's attributes now.
    Entries(Attr),
    /// Some notices were lost: anything may have changed.
    Overflow,
}

/// An open regular file. It stays usable after its last name is gone.
pub trait StoreFile: Send + Sync {
    /// Attributes.
    fn attr(&self) -> Result<Attr>;

    /// Changes attributes and returns the new ones.
    fn set_attr(&self, set: &SetAttr) -> Result<Attr>;

    /// Fills `buf` from `offset`; shorter only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Writes all of `buf` at `offset`, extending the file. `ENOSPC`, `EDQUOT`, `EFBIG`, `EBADF` if
    /// not open for writing.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Makes `start..end` read as zeroes, extending the file to `end` if it is shorter: what is a hole
    /// stays one, what is allocated stays allocated.
    fn zero_at(&self, start: u64, end: u64) -> Result<()>;

    /// `fallocate(2)`.
    fn allocate(&self, start: u64, end: u64, mode: Allocate) -> Result<Attr>;

    /// Where the next data at or after `offset` begins. `ENXIO` if there is none or `offset` is
    /// past the end.
    fn next_data(&self, offset: u64) -> Result<u64>;

    /// Where the next hole at or after `offset` begins: at the latest at the end of the file. `ENXIO` if
    /// `offset` is past the end.
    fn next_hole(&self, offset: u64) -> Result<u64>;

    /// Names of the extended attributes, each followed by NUL.
    fn list_xattr(&self) -> Result<Vec<u8>>;

    /// Makes what was written durable; without times and the like if `data_only`.
    fn sync(&self, data_only: bool) -> Result<()>;
}
