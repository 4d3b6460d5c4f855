//! The root of a served tree, and the way from it to a node.

use super::attributes::{self, proc_path};
use super::places::Places;
use crate::store::{Errno, Result};
use crate::wire::{Attr, Kind, Node, RelPath};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::io;
use std::path::{Path, PathBuf};

/// How often a walk is tried anew that the kernel gave up because of a rename beside it.
const WALKS_MAX: usize = 64;

/// The root of a served tree.
pub struct Tree {
    root: OwnedFd,
    /// How the root is called where people read it.
    shown: PathBuf,
    /// The file system counts names of directories: none means that the root was removed.
    counts_names: bool,
    places: Places,
}

/// A node that was found.
pub struct Located {
    /// Held with `O_PATH`.
    pub fd: OwnedFd,
    /// Its attributes when it was found.
    pub attr: Attr,
}

impl Tree {
    /// See [`super::Directory::open`].
    pub fn open(path: &Path) -> io::Result<Tree> {
        let explain = |error: Errno| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let lacking = |what: &str| {
            let text = format!("{}: cannot be served: {what}", path.display());
            io::Error::new(io::ErrorKind::Unsupported, text)
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(explain)?;
        let tree = Tree::over(root, path.to_path_buf()).map_err(explain)?;
        tree.at(&RelPath::root()).map_err(|error| match error {
            Errno::NOSYS => lacking("this kernel has no openat2 (Linux 5.6 is needed)"),
            Errno::PERM => {
                lacking("openat2 is forbidden here (an old container's seccomp filter?)")
            }
            error => explain(error),
        })?;
        let through_proc =
            rustix::fs::statat(CWD, proc_path(&tree.root), rustix::fs::AtFlags::empty());
        through_proc.map_err(|_| lacking("/proc is not mounted"))?;
        Ok(tree)
    }

    fn over(root: OwnedFd, shown: PathBuf) -> Result<Tree> {
        let attr = attributes::of(&root)?;
        Ok(Tree {
            root,
            shown,
            counts_names: attr.nlink > 0,
            places: Places::new(attr.id),
        })
    }

    /// The directory at `path` as a tree of its own.
    pub fn subtree(&self, path: &RelPath) -> Result<Tree> {
        let found = self.at(path)?;
        if found.attr.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        let shown = match path.is_root() {
            true => self.shown.clone(),
            false => self.shown.join(path.as_os()),
        };
        Tree::over(found.fd, shown)
    }

    /// How the root is called where people read it.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// The root, held with `O_PATH`.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where nodes were seen.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// What is at `path` now. `ESTALE` for the root if it was removed.
    pub fn at(&self, path: &RelPath) -> Result<Located> {
        let fd = self.walk(path)?;
        let attr = attributes::of(&fd)?;
        if path.is_root() && attr.nlink == 0 && self.counts_names {
            return Err(Errno::STALE);
        }
        Ok(Located { fd, attr })
    }

    /// The node meant, at the path given or where else it was seen last. `ESTALE` if it is at
    /// neither.
    pub fn resolve(&self, node: &Node) -> Result<Located> {
        match self.at(&node.path) {
            Ok(found) if found.attr.id == node.id => return Ok(found),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => {}
            Err(error) => return Err(error),
        }
        for path in self.places.of(node.id) {
            if let Ok(found) = self.at(&path)
                && found.attr.id == node.id
            {
                return Ok(found);
            }
        }
        Err(Errno::STALE)
    }

    /// The last component may be a symbolic link, which is then found itself.
    fn walk(&self, path: &RelPath) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within =
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        for _ in 1..WALKS_MAX {
            match rustix::fs::openat2(&self.root, path.as_os(), flags, Mode::empty(), within) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        rustix::fs::openat2(&self.root, path.as_os(), flags, Mode::empty(), within)
    }
}

/// A directory held with `O_PATH`, opened for reading.
pub fn reopen_directory(fd: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, proc_path(fd), flags, Mode::empty())
}
