//! Names in memory: which directory calls which node what.

use super::inode::Inode;
use super::{NAME_COST, Space};
use crate::store::{Errno, Result};
use crate::wire::{FileId, Kind, Name, Node, RelPath, RenameMode};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Inode number of the root of the whole tree.
pub(super) const ROOT: u64 = 1;

/// Entries of a directory. A cursor stays with its name for as long as the name is taken, whatever
/// node it is a name of, so that a listing meets it once.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Inode number of the directory it is in.
    parent: u64,
    /// Name → cursor and inode number.
    names: HashMap<Name, (u64, u64)>,
    order: BTreeMap<u64, Name>,
    last_cursor: u64,
}

impl Directory {
    fn find(&self, name: &Name) -> Result<u64> {
        self.names.get(name).map(|e| e.1).ok_or(Errno::NOENT)
    }

    fn set(&mut self, name: &Name, ino: u64) {
        if let Some(entry) = self.names.get_mut(name) {
            entry.1 = ino;
            return;
        }
        self.last_cursor += 1;
        self.names.insert(name.clone(), (self.last_cursor, ino));
        self.order.insert(self.last_cursor, name.clone());
    }

    fn remove(&mut self, name: &Name) {
        if let Some((cursor, _)) = self.names.remove(name) {
            self.order.remove(&cursor);
        }
    }

    /// Entries after a cursor, with theirs.
    pub(super) fn after(&self, cursor: u64) -> impl Iterator<Item = (u64, &Name, u64)> {
        let behind = self.order.range(cursor.saturating_add(1)..);
        behind.filter_map(|(cursor, name)| Some((*cursor, name, self.names.get(name)?.1)))
    }
}

/// All names, and the nodes that have any.
pub(super) struct Tree {
    inodes: HashMap<u64, Arc<Inode>>,
    directories: HashMap<u64, Directory>,
    space: Arc<Space>,
}

impl Tree {
    pub(super) fn new(root: Arc<Inode>, space: Arc<Space>) -> Tree {
        let directory = Directory {
            parent: ROOT,
            ..Directory::default()
        };
        Tree {
            inodes: HashMap::from([(ROOT, root)]),
            directories: HashMap::from([(ROOT, directory)]),
            space,
        }
    }

    /// The node with this number. `ESTALE` if it has no name any more.
    pub(super) fn inode(&self, ino: u64) -> Result<&Arc<Inode>> {
        self.inodes.get(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn directory(&self, ino: u64) -> Result<&Directory> {
        self.directories.get(&ino).ok_or(Errno::NOTDIR)
    }

    fn directory_mut(&mut self, ino: u64) -> Result<&mut Directory> {
        self.directories.get_mut(&ino).ok_or(Errno::NOTDIR)
    }

    /// The node that `node` means, as seen from the directory `root`: by its identity where `root` is
    /// the root of all, otherwise only at its path, since it must be below `root`.
    pub(super) fn find(&self, root: u64, node: &Node) -> Result<&Arc<Inode>> {
        let found = if root == ROOT {
            self.inode(node.id.ino)?
        } else {
            self.walk(root, &node.path).map_err(|_| Errno::STALE)?
        };
        let same: FileId = found.id;
        (same == node.id).then_some(found).ok_or(Errno::STALE)
    }

    /// The node at a path below the directory `root`.
    pub(super) fn walk(&self, root: u64, path: &RelPath) -> Result<&Arc<Inode>> {
        let Some((parent, name)) = path.split() else {
            return self.inode(root);
        };
        let parent = self.walk(root, &parent)?.id.ino;
        self.lookup(parent, &name)
    }

    /// The node that `dir` calls `name`.
    pub(super) fn lookup(&self, dir: u64, name: &Name) -> Result<&Arc<Inode>> {
        self.inode(self.directory(dir)?.find(name)?)
    }

    /// Gives a node its first name.
    pub(super) fn insert(&mut self, dir: u64, name: &Name, inode: Arc<Inode>) -> Result<()> {
        let (ino, is_directory) = (inode.id.ino, inode.kind() == Kind::Directory);
        self.add_name(dir, name, &inode)?;
        if is_directory {
            let directory = Directory {
                parent: dir,
                ..Directory::default()
            };
            self.directories.insert(ino, directory);
            self.inode(dir)?.link(1);
            inode.link(1); // its own `.`
        }
        self.inodes.insert(ino, inode);
        Ok(())
    }

    /// Gives a node a name that is free.
    pub(super) fn add_name(&mut self, dir: u64, name: &Name, inode: &Inode) -> Result<()> {
        if self.directory(dir)?.find(name).is_ok() {
            return Err(Errno::EXIST);
        }
        self.space.take(NAME_COST)?;
        inode.link(1);
        self.directory_mut(dir)?.set(name, inode.id.ino);
        self.inode(dir)?.touch_content();
        Ok(())
    }

    /// Takes a name away, and the node with it if it was the last.
    pub(super) fn remove(&mut self, dir: u64, name: &Name, as_directory: bool) -> Result<()> {
        let ino = self.directory(dir)?.find(name)?;
        match (self.directories.get(&ino), as_directory) {
            (None, true) => return Err(Errno::NOTDIR),
            (Some(_), false) => return Err(Errno::ISDIR),
            (Some(directory), true) if !directory.names.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        self.directory_mut(dir)?.remove(name);
        self.space.give(NAME_COST);
        self.inode(dir)?.touch_content();
        self.drop_name(dir, ino)
    }

    /// A node has lost its name in `dir`; if it is a directory, it was empty.
    fn drop_name(&mut self, dir: u64, ino: u64) -> Result<()> {
        let left = self.inode(ino)?.link(-1);
        if self.directories.remove(&ino).is_some() {
            self.inode(ino)?.link(-1);
            self.inode(dir)?.link(-1);
            self.inodes.remove(&ino);
        } else if left == 0 {
            self.inodes.remove(&ino);
        }
        Ok(())
    }

    /// As [`crate::store::Store::rename`].
    pub(super) fn rename(
        &mut self,
        from: (u64, &Name),
        to: (u64, &Name),
        mode: RenameMode,
    ) -> Result<()> {
        let moved = self.directory(from.0)?.find(from.1)?;
        let target = self.directory(to.0)?.find(to.1);
        if self.is_within(moved, to.0) {
            return Err(Errno::INVAL);
        }
        match (target, mode) {
            (Ok(_), RenameMode::NoReplace) => return Err(Errno::EXIST),
            (Err(errno), RenameMode::Exchange) => return Err(errno),
            (Ok(target), _) if target == moved => return Ok(()),
            (Ok(target), RenameMode::Exchange) => {
                if self.is_within(target, from.0) {
                    return Err(Errno::INVAL);
                }
                self.directory_mut(from.0)?.set(from.1, target);
                self.moved(target, to.0, from.0)?;
            }
            (Ok(target), RenameMode::Replace) => {
                self.check_replaces(moved, target)?;
                self.directory_mut(from.0)?.remove(from.1);
                self.space.give(NAME_COST);
                self.drop_name(to.0, target)?;
            }
            (Err(_), _) => self.directory_mut(from.0)?.remove(from.1),
        }
        self.directory_mut(to.0)?.set(to.1, moved);
        self.moved(moved, from.0, to.0)?;
        self.inode(from.0)?.touch_content();
        self.inode(to.0)?.touch_content();
        Ok(())
    }

    /// Whether a directory can take the place of another, or a file that of a file.
    fn check_replaces(&self, moved: u64, target: u64) -> Result<()> {
        let directory = |ino| self.directories.get(&ino);
        match (directory(moved), directory(target)) {
            (Some(_), None) => Err(Errno::NOTDIR),
            (None, Some(_)) => Err(Errno::ISDIR),
            (Some(_), Some(target)) if !target.names.is_empty() => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    /// A node has gone from one directory to another.
    fn moved(&mut self, ino: u64, from: u64, to: u64) -> Result<()> {
        if let Some(directory) = self.directories.get_mut(&ino) {
            directory.parent = to;
            self.inode(from)?.link(-1);
            self.inode(to)?.link(1);
        }
        self.inode(ino)?.touch();
        Ok(())
    }

    /// Whether the directory `dir` is `ino` or below it.
    fn is_within(&self, ino: u64, mut dir: u64) -> bool {
        while dir != ino && dir != ROOT {
            match self.directories.get(&dir) {
                Some(directory) => dir = directory.parent,
                None => return false,
            }
        }
        dir == ino
    }
}
