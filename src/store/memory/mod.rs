//! A tree in memory: `mem://?size=1G`. It ends with the process that serves it.
//!
//! | part | holds | guarded by |
//! |---|---|---|
//! | `tree` | which directory calls which node what | one lock for all names |
//! | `inode` | a node: attributes, extended attributes, content | one lock each, taken after that of the names |
//! | `content` | the pages of a file that hold something | (its node's) |
//!
//! An open file holds its node and not the tree, so reads and writes of different files never meet.
//! Everything takes its share of the size: pages what they hold, nodes and names a fixed amount, so
//! memory stays bounded whatever is made here. A node that has neither name nor open file is gone.
//! Times of access are kept as set and not updated by reading.

mod content;
mod inode;
mod tree;

use self::content::Space;
use self::inode::{Clock, Inode, OpenFile};
use self::tree::{ROOT, Tree};
use super::{Errno, Noticed, Result, Store, StoreFile};
use crate::units::{PAGE_BYTES, parse_size};
use crate::wire::{
    Access, Attr, Caller, Capabilities, DirEntry, FileId, Kind, Make, Name, Node, RelPath,
    RenameMode, SetAttr, StatFs, XattrMode,
};
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the size that a node takes.
const NODE_COST: u64 = 512;
/// Bytes of the size that a name takes.
const NAME_COST: u64 = 512;
/// The smallest size, in bytes.
const SIZE_MIN: u64 = 64 << 10;

struct Shared {
    tree: RwLock<Tree>,
    space: Arc<Space>,
    clock: Arc<Clock>,
    last_ino: AtomicU64,
}

/// A tree in memory, or one of its directories as a tree of its own.
pub struct Memory {
    shared: Arc<Shared>,
    /// Inode number of the root.
    root: u64,
}

impl Memory {
    /// An empty tree that holds at most `size_bytes` (64 KiB or more).
    pub fn new(size_bytes: u64) -> Memory {
        let space = Arc::new(Space::new(size_bytes.max(SIZE_MIN)));
        let clock = Arc::new(Clock::default());
        let owner = Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        let free = (space.clone(), 0);
        #[allow(clippy::expect_used, reason = "a directory that takes no space fits")]
        let root = Inode::new(ROOT, &Make::Directory, 0o755, owner, clock.clone(), free)
            .expect("the root takes no space");
        root.link(2);
        Memory {
            shared: Arc::new(Shared {
                tree: RwLock::new(Tree::new(Arc::new(root), space.clone())),
                space,
                clock,
                last_ino: AtomicU64::new(ROOT),
            }),
            root: ROOT,
        }
    }

    /// The tree that `mem://?size=…` asks for.
    ///
    /// # Errors
    /// One line that names what is wrong and what is allowed.
    pub fn from_url(url: &str) -> std::result::Result<Memory, String> {
        let wrong = |what: &str| Err(format!("'{url}': {what}; as in mem://?size=1G"));
        let Some(query) = url.strip_prefix("mem://") else {
            return wrong("not a store in memory");
        };
        let Some(query) = query.strip_prefix('/').unwrap_or(query).strip_prefix('?') else {
            return wrong("a store in memory needs a size");
        };
        let Some(size) = query.strip_prefix("size=") else {
            return wrong("a store in memory has a size and nothing else");
        };
        match parse_size(size) {
            Err(what) => wrong(&what),
            Ok(bytes) if bytes < SIZE_MIN => wrong("the size is at least 64K"),
            Ok(bytes) => Ok(Memory::new(bytes)),
        }
    }

    /// The directory that `dir` means.
    fn directory(&self, tree: &Tree, dir: &Node) -> Result<u64> {
        let inode = tree.find(self.root, dir)?;
        match inode.kind() {
            Kind::Directory => Ok(inode.id.ino),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// The node that `node` means, to be used without the lock of the names.
    fn inode(&self, node: &Node) -> Result<Arc<Inode>> {
        let tree = self.shared.tree.read();
        tree.find(self.root, node).cloned()
    }

    /// Makes a node that has a name in `dir` from the first.
    fn insert(
        &self,
        tree: &mut Tree,
        (dir, name): (u64, &Name),
        make: &Make,
        mode: u16,
        by: Caller,
    ) -> Result<Arc<Inode>> {
        let (mut mode, mut owner) = (mode, by);
        let parent = tree.inode(dir)?.attr();
        if parent.mode & 0o2000 != 0 {
            owner.gid = parent.gid;
            if matches!(make, Make::Directory) {
                mode |= 0o2000;
            }
        }
        let shared = &self.shared;
        let ino = shared.last_ino.fetch_add(1, Ordering::Relaxed) + 1;
        let space = (shared.space.clone(), NODE_COST);
        let inode = Inode::new(ino, make, mode, owner, shared.clock.clone(), space)?;
        let inode = Arc::new(inode);
        tree.insert(dir, name, inode.clone())?;
        Ok(inode)
    }
}

impl Store for Memory {
    fn describe(&self) -> String {
        format!("mem://?size={}", self.shared.space.size)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            xattrs: true,
            hard_links: true,
            symlinks: true,
            special_files: true,
            owners: true,
            durable: false,
        }
    }

    fn subtree(&self, path: &RelPath) -> Result<Arc<dyn Store>> {
        let tree = self.shared.tree.read();
        let inode = tree.walk(self.root, path)?;
        if inode.kind() != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok(Arc::new(Memory {
            shared: self.shared.clone(),
            root: inode.id.ino,
        }))
    }

    fn root(&self) -> Result<Attr> {
        Ok(self.shared.tree.read().inode(self.root)?.attr())
    }

    fn lookup(&self, dir: &Node, name: &Name) -> Result<Attr> {
        let tree = self.shared.tree.read();
        let dir = self.directory(&tree, dir)?;
        Ok(tree.lookup(dir, name)?.attr())
    }

    fn attr(&self, node: &Node) -> Result<Attr> {
        Ok(self.inode(node)?.attr())
    }

    fn set_attr(&self, node: &Node, set: &SetAttr) -> Result<Attr> {
        self.inode(node)?.set_attr(set)
    }

    fn make(&self, dir: &Node, name: &Name, make: &Make, mode: u16, by: Caller) -> Result<Attr> {
        let tree = &mut *self.shared.tree.write();
        let dir = self.directory(tree, dir)?;
        Ok(self.insert(tree, (dir, name), make, mode, by)?.attr())
    }

    fn create(
        &self,
        dir: &Node,
        name: &Name,
        mode: u16,
        exclusive: bool,
        by: Caller,
    ) -> Result<(Attr, Box<dyn StoreFile>)> {
        let tree = &mut *self.shared.tree.write();
        let dir = self.directory(tree, dir)?;
        let inode = match tree.lookup(dir, name) {
            Ok(found) if !exclusive && found.kind() == Kind::File => found.clone(),
            Ok(_) => return Err(Errno::EXIST),
            Err(Errno::NOENT) => self.insert(tree, (dir, name), &Make::File, mode, by)?,
            Err(errno) => return Err(errno),
        };
        let attr = inode.attr();
        Ok((attr, Box::new(OpenFile::new(inode, Access::Write)?)))
    }

    fn open(&self, node: &Node, access: Access) -> Result<Box<dyn StoreFile>> {
        Ok(Box::new(OpenFile::new(self.inode(node)?, access)?))
    }

    fn link(&self, node: &Node, dir: &Node, name: &Name) -> Result<Attr> {
        let tree = &mut *self.shared.tree.write();
        let dir = self.directory(tree, dir)?;
        let inode = tree.find(self.root, node)?.clone();
        if inode.kind() == Kind::Directory {
            return Err(Errno::PERM);
        }
        tree.add_name(dir, name, &inode)?;
        Ok(inode.attr())
    }

    fn remove(&self, dir: &Node, name: &Name, directory: bool) -> Result<()> {
        let tree = &mut *self.shared.tree.write();
        let dir = self.directory(tree, dir)?;
        tree.remove(dir, name, directory)
    }

    fn rename(
        &self,
        from_dir: &Node,
        from: &Name,
        to_dir: &Node,
        to: &Name,
        mode: RenameMode,
    ) -> Result<()> {
        let tree = &mut *self.shared.tree.write();
        let from_dir = self.directory(tree, from_dir)?;
        let to_dir = self.directory(tree, to_dir)?;
        tree.rename((from_dir, from), (to_dir, to), mode)
    }

    fn read_link(&self, node: &Node) -> Result<Vec<u8>> {
        self.inode(node)?.target()
    }

    fn read_dir(&self, dir: &Node, cursor: u64, max: usize) -> Result<Vec<DirEntry>> {
        let tree = self.shared.tree.read();
        let dir = self.directory(&tree, dir)?;
        let entries = tree.directory(dir)?.after(cursor).take(max);
        let entries = entries.map(|(cursor, name, ino)| {
            Ok(DirEntry {
                name: name.clone(),
                attr: tree.inode(ino)?.attr(),
                cursor,
                xattrs: None,
            })
        });
        entries.collect()
    }

    fn get_xattr(&self, node: &Node, name: &[u8]) -> Result<Vec<u8>> {
        self.inode(node)?.get_xattr(name)
    }

    fn list_xattr(&self, node: &Node) -> Result<Vec<u8>> {
        Ok(self.inode(node)?.list_xattr())
    }

    fn set_xattr(&self, node: &Node, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.inode(node)?.set_xattr(name, value, mode)
    }

    fn remove_xattr(&self, node: &Node, name: &[u8]) -> Result<()> {
        self.inode(node)?.remove_xattr(name)
    }

    fn sync_dir(&self, dir: &Node) -> Result<()> {
        let tree = self.shared.tree.read();
        self.directory(&tree, dir).map(drop)
    }

    fn stat_fs(&self) -> Result<StatFs> {
        let space = &self.shared.space;
        let free = space.free();
        Ok(StatFs {
            block_bytes: PAGE_BYTES as u32,
            blocks: space.size / PAGE_BYTES,
            blocks_free: free / PAGE_BYTES,
            blocks_available: free / PAGE_BYTES,
            files: space.size / (NODE_COST + NAME_COST),
            files_free: free / (NODE_COST + NAME_COST),
            name_bytes_max: 255,
        })
    }

    /// Nobody changes the tree but through this store.
    fn watch(&self, _sink: Box<dyn Fn(Noticed) + Send + Sync>) -> Result<()> {
        Ok(())
    }

    fn observe(&self, _dir: &Node) {}

    fn unobserve(&self, _dir: FileId) {}
}

#[cfg(test)]
mod tests;
