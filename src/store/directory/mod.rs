//! A directory tree of this machine, served as it is.
//!
//! ```text
//! Node {id, path} ── openat2 beneath the root ── statx: is it `id`? ── yes: work on the descriptor
//!                                                       └─ no: where else was `id` seen? ─ ESTALE
//! ```
//!
//! Every path is walked by the kernel from a descriptor of the root, with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`: no name, symbolic link or race leads out of the tree. What is found is
//! held with `O_PATH` (nothing is opened that could block or have an effect), checked for identity,
//! and worked on through that descriptor, or as a name directly in it. Calls that know no `O_PATH`
//! descriptors go through `/proc/self/fd`, which leads to the very node, not to its path.
//!
//! | file | does |
//! |---|---|
//! | `tree` | walks paths, checks identities |
//! | `places` | remembers where nodes were seen |
//! | `attributes` | reads and changes attributes |
//! | `make` | makes nodes with the right owner and mode |
//! | `listing` | lists directories |
//! | `file` | an open regular file |
//! | `xattr` | extended attributes |
//! | `watch` | notices what others do |

mod attributes;
mod file;
mod listing;
mod make;
mod places;
mod tree;
mod watch;
mod xattr;

use super::{Errno, Noticed, Result, Store, StoreFile};
use crate::wire::{
    Access, Attr, Caller, Capabilities, DirEntry, FileId, Kind, Make, Name, Node, RelPath,
    RenameMode, SetAttr, StatFs, XattrMode,
};
use attributes::{proc_path, stat_at};
use file::OpenFile;
use listing::Listings;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, RenameFlags};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tree::Tree;
use watch::Watch;

/// A tree on this machine.
pub struct Directory {
    tree: Arc<Tree>,
    listings: Listings,
    capabilities: Capabilities,
    watch: OnceLock<Watch>,
}

impl Directory {
    /// The tree below `path`, which may itself be reached through symbolic links.
    ///
    /// # Errors
    /// Those of `open(2)`, and `Unsupported` where the kernel has no `openat2` (before Linux 5.6)
    /// or `/proc` is not mounted. The text names the path and is fit to be shown.
    pub fn open(path: &Path) -> io::Result<Directory> {
        Ok(Directory::over(Tree::open(path)?))
    }

    fn over(tree: Tree) -> Directory {
        let capabilities = Capabilities {
            xattrs: xattr::supported(tree.root_fd()),
            hard_links: true,
            symlinks: true,
            special_files: true,
            owners: rustix::process::geteuid().is_root(),
            durable: true,
        };
        Directory {
            tree: Arc::new(tree),
            listings: Listings::default(),
            capabilities,
            watch: OnceLock::new(),
        }
    }
}

impl Store for Directory {
    fn describe(&self) -> String {
        self.tree.shown().display().to_string()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn subtree(&self, path: &RelPath) -> Result<Arc<dyn Store>> {
        Ok(Arc::new(Directory::over(self.tree.subtree(path)?)))
    }

    fn root(&self) -> Result<Attr> {
        Ok(self.tree.at(&RelPath::root())?.attr)
    }

    fn lookup(&self, dir: &Node, name: &Name) -> Result<Attr> {
        let found = self.tree.resolve(dir)?;
        let attr = stat_at(&found.fd, name)?;
        self.tree.places().record(attr.id, dir.id, name);
        Ok(attr)
    }

    fn attr(&self, node: &Node) -> Result<Attr> {
        Ok(self.tree.resolve(node)?.attr)
    }

    fn set_attr(&self, node: &Node, set: &SetAttr) -> Result<Attr> {
        let found = self.tree.resolve(node)?;
        attributes::change(&found.fd, &found.attr, set, None)
    }

    fn make(&self, dir: &Node, name: &Name, make: &Make, mode: u16, by: Caller) -> Result<Attr> {
        let found = self.tree.resolve(dir)?;
        let attr = make::node(&found, name, make, mode, by)?;
        self.tree.places().record(attr.id, dir.id, name);
        Ok(attr)
    }

    fn create(
        &self,
        dir: &Node,
        name: &Name,
        mode: u16,
        exclusive: bool,
        by: Caller,
    ) -> Result<(Attr, Box<dyn StoreFile>)> {
        let found = self.tree.resolve(dir)?;
        let (attr, file) = make::file(&found, name, mode, exclusive, by)?;
        self.tree.places().record(attr.id, dir.id, name);
        Ok((attr, Box::new(file)))
    }

    fn open(&self, node: &Node, access: Access) -> Result<Box<dyn StoreFile>> {
        let found = self.tree.resolve(node)?;
        Ok(Box::new(OpenFile::reopen(
            &found.fd,
            found.attr.kind,
            access,
        )?))
    }

    fn link(&self, node: &Node, dir: &Node, name: &Name) -> Result<Attr> {
        let from = self.tree.resolve(node)?;
        let to = self.tree.resolve(dir)?;
        // The descriptor's link in /proc is followed to the node, whatever it is, and no further.
        let path = proc_path(&from.fd);
        rustix::fs::linkat(CWD, path, &to.fd, name.as_os(), AtFlags::SYMLINK_FOLLOW)?;
        self.tree.places().record(node.id, dir.id, name);
        attributes::of(&from.fd)
    }

    fn remove(&self, dir: &Node, name: &Name, directory: bool) -> Result<()> {
        let found = self.tree.resolve(dir)?;
        let flags = match directory {
            true => AtFlags::REMOVEDIR,
            false => AtFlags::empty(),
        };
        let last = last_name(&found.fd, name);
        rustix::fs::unlinkat(&found.fd, name.as_os(), flags)?;
        if let Some(gone) = last {
            self.tree.places().forget(gone);
        }
        Ok(())
    }

    fn rename(
        &self,
        from_dir: &Node,
        from: &Name,
        to_dir: &Node,
        to: &Name,
        mode: RenameMode,
    ) -> Result<()> {
        let source = self.tree.resolve(from_dir)?;
        let target = self.tree.resolve(to_dir)?;
        let (old, new) = (from.as_os(), to.as_os());
        let replaced = (mode == RenameMode::Replace).then(|| last_name(&target.fd, to));
        match mode {
            RenameMode::Replace => rustix::fs::renameat(&source.fd, old, &target.fd, new),
            RenameMode::NoReplace => {
                rustix::fs::renameat_with(&source.fd, old, &target.fd, new, RenameFlags::NOREPLACE)
            }
            RenameMode::Exchange => {
                rustix::fs::renameat_with(&source.fd, old, &target.fd, new, RenameFlags::EXCHANGE)
            }
        }?;
        let places = self.tree.places();
        if let Some(gone) = replaced.flatten() {
            places.forget(gone);
        }
        if let Ok(moved) = stat_at(&target.fd, to) {
            places.record(moved.id, to_dir.id, to);
        }
        if mode == RenameMode::Exchange
            && let Ok(moved) = stat_at(&source.fd, from)
        {
            places.record(moved.id, from_dir.id, from);
        }
        Ok(())
    }

    fn read_link(&self, node: &Node) -> Result<Vec<u8>> {
        let found = self.tree.resolve(node)?;
        if found.attr.kind != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(rustix::fs::readlinkat(&found.fd, c"", Vec::new())?.into_bytes())
    }

    fn read_dir(&self, dir: &Node, cursor: u64, max: usize) -> Result<Vec<DirEntry>> {
        let found = self.tree.resolve(dir)?;
        let entries = self.listings.read(&found, cursor, max)?;
        // Listed files are not remembered: a large directory would drive out all else.
        for entry in &entries {
            if entry.attr.kind == Kind::Directory {
                let places = self.tree.places();
                places.record(entry.attr.id, dir.id, &entry.name);
            }
        }
        Ok(entries)
    }

    fn get_xattr(&self, node: &Node, name: &[u8]) -> Result<Vec<u8>> {
        xattr::get(&self.tree.resolve(node)?.fd, name)
    }

    fn list_xattr(&self, node: &Node) -> Result<Vec<u8>> {
        xattr::list(&self.tree.resolve(node)?.fd)
    }

    fn set_xattr(&self, node: &Node, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        xattr::set(&self.tree.resolve(node)?.fd, name, value, mode)
    }

    fn remove_xattr(&self, node: &Node, name: &[u8]) -> Result<()> {
        xattr::remove(&self.tree.resolve(node)?.fd, name)
    }

    fn sync_dir(&self, dir: &Node) -> Result<()> {
        let found = self.tree.resolve(dir)?;
        rustix::fs::fsync(tree::reopen_directory(&found.fd)?)
    }

    fn stat_fs(&self) -> Result<StatFs> {
        let stat = rustix::fs::fstatvfs(self.tree.root_fd())?;
        Ok(StatFs {
            block_bytes: stat.f_frsize as u32,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            name_bytes_max: stat.f_namemax as u32,
        })
    }

    fn watch(&self, sink: Box<dyn Fn(Noticed) + Send + Sync>) -> Result<()> {
        let watch = Watch::start(Arc::clone(&self.tree), sink)?;
        self.watch.set(watch).map_err(|_| Errno::BUSY)
    }

    fn observe(&self, dir: &Node) {
        if let Some(watch) = self.watch.get() {
            watch.observe(dir);
        }
    }

    fn unobserve(&self, dir: FileId) {
        if let Some(watch) = self.watch.get() {
            watch.unobserve(dir);
        }
    }
}

/// What is called so in a directory, if it has no other name: as far as can be told before the name is taken away.
fn last_name(dir: &OwnedFd, name: &Name) -> Option<FileId> {
    let attr = stat_at(dir, name).ok()?;
    (attr.kind == Kind::Directory || attr.nlink == 1).then_some(attr.id)
}

#[cfg(test)]
mod tests;
