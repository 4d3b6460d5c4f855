//! How commands talk with the process of a mount: over a Unix socket of its user, one connection for each
//! command.
//!
//! ```text
//! command                                    process of the mount
//!   Request, a line of JSON ───────────────▶
//!   ◀─────────────────────────────── Events, a line of JSON each, until the connection ends
//! ```
//!
//! The socket is named by the mount's device number, which `/proc/self/mountinfo` shows to everybody, in a
//! directory that only the user can enter. Each side checks who the other one is.

mod client;
mod files;
mod server;

pub use client::{Client, find, find_at, remove_socket};
pub use files::each;
pub use server::{Left, Server, Service};

use crate::frontend::fuse::mounts::Device;
use crate::node::replica::{Conflict, Status};
use crate::units::ByteRange;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// [`Event::Status`].
    Status,
    /// Bring files in, or a part of each. [`Event::Progress`] in bytes, [`Event::Failed`] for what cannot be had, and
    /// [`Event::Done`].
    Pull {
        /// Inode numbers and sizes in bytes.
        files: Vec<(u64, u64)>,
        /// Which part of each.
        part: Part,
        /// Tell how it goes; otherwise [`Event::Done`] comes at once.
        wait: bool,
    },
    /// Push what is dirty of these inodes. [`Event::Progress`] in files, [`Event::Failed`], [`Event::Done`].
    Flush {
        /// Inode numbers and sizes in bytes.
        files: Vec<(u64, u64)>,
    },
    /// Drop what is clean of these inodes. Events as for `Flush`.
    Forget {
        /// Inode numbers and sizes in bytes.
        files: Vec<(u64, u64)>,
    },
    /// What is kept beside files that others have changed, after one of them is settled: [`Event::Conflicts`], or
    /// [`Event::Failed`].
    Conflicts {
        /// What to settle.
        settle: Option<Settle>,
    },
    /// Push everything: [`Event::Progress`] in bytes, [`Event::Left`] for what could not be pushed, and
    /// [`Event::Pushed`]. Once nobody uses the mount any more, or another line of the command says not to wait
    /// for that: [`Event::Left`] again, and the end.
    Umount {
        /// Give up soon.
        force: bool,
    },
}

/// A part of a file: the bytes of it from `from` up to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// First byte.
    pub from: u64,
    /// One past the last byte.
    pub to: u64,
}

impl Part {
    /// Of a file of `size` bytes.
    pub fn of(self, size: u64) -> ByteRange {
        ByteRange::new(self.from.min(size), self.to.min(size))
    }
}

/// How a conflict is settled: of which path below the mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settle {
    /// What is kept is pushed over what is there.
    KeepMine(String),
    /// What is kept is dropped.
    Drop(String),
}

/// What a command is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// What is going on.
    Status(Box<MountStatus>),
    /// So much of it is done.
    Progress {
        /// Bytes or files.
        done: u64,
        /// In all.
        total: u64,
    },
    /// It did not go well with an inode.
    Failed {
        /// The inode.
        inode: u64,
        /// Why.
        errno: i32,
    },
    /// It is carried out.
    Done,
    /// What is kept beside files that others have changed.
    Conflicts(Vec<Conflict>),
    /// It is not pushed.
    Left(Left),
    /// Pushing has come to its end.
    Pushed,
}

/// A mount and what its replica is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where it is mounted.
    pub mountpoint: String,
    /// What was mounted.
    pub source: String,
    /// Process that serves the mount.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Changes are refused.
    pub read_only: bool,
    /// What it is doing.
    #[serde(flatten)]
    pub replica: Status,
}

/// Where the socket of a mount of the user `owner` may be, likeliest first.
pub fn socket_paths(device: Device, owner: u32) -> Vec<PathBuf> {
    let name = format!("{}-{}", device.major, device.minor);
    let directories = runtime_directories(owner).into_iter();
    directories.map(|path| path.join(&name)).collect()
}

/// Where things of a user's running processes may be, likeliest first.
fn runtime_directories(owner: u32) -> Vec<PathBuf> {
    match owner {
        0 => vec![PathBuf::from("/run/memfs")],
        _ => {
            let own = rustix::process::getuid().as_raw() == owner;
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| own);
            let runtime = runtime.map(PathBuf::from).filter(|path| path.is_absolute());
            let usual = PathBuf::from(format!("/run/user/{owner}"));
            let mut directories: Vec<PathBuf> = runtime.into_iter().collect();
            if !directories.contains(&usual) {
                directories.push(usual);
            }
            let mut directories: Vec<_> =
                directories.iter().map(|path| path.join("memfs")).collect();
            directories.push(PathBuf::from(format!("/tmp/memfs-{owner}")));
            directories
        }
    }
}

/// The first of this user's own that is or can be made private.
///
/// # Errors
/// Why the last of them cannot.
pub fn runtime_directory() -> io::Result<PathBuf> {
    let mut complaint = io::Error::from(io::ErrorKind::NotFound);
    for directory in runtime_directories(rustix::process::geteuid().as_raw()) {
        match make_private(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => {
                let path = directory.display();
                complaint = io::Error::new(error.kind(), format!("{path}: {error}"));
            }
        }
    }
    Err(complaint)
}

/// Makes a directory that is this user's alone, if there is none.
///
/// # Errors
/// Where it is not, or cannot be made.
pub fn make_private(directory: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => check_private(&std::fs::symlink_metadata(directory)?),
    }
}

/// A directory that nobody else can look into, made if there is none, with those above it.
///
/// # Errors
/// Where it is not this user's alone, or cannot be made.
pub fn private_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    check_private(&path.metadata()?)
}

/// That a directory is this user's alone.
///
/// # Errors
/// `PermissionDenied`, with a text that says what is wrong.
pub fn check_private(metadata: &std::fs::Metadata) -> io::Result<()> {
    let wrong = |what: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    if !metadata.is_dir() {
        return wrong("not a directory".into());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return wrong(format!("it belongs to user {}", metadata.uid()));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o7777;
        return wrong(format!(
            "others can get in (mode {mode:04o}): 'chmod go=' it"
        ));
    }
    Ok(())
}
