//! What a node of the served tree is called on the wire, and its attributes.

use super::{Name, RelPath};
use bincode::{Decode, Encode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Identity of a node (file, directory, link …) in an export, as long as it lives: device, inode
/// number, and the time of birth, which tells a reused inode number from its former owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct FileId {
    /// Device number as `stat(2)` has it, or 0.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Time of birth in nanoseconds since 1970 (`statx(2)` `stx_btime`), or a generation, or 0.
    pub born: u64,
}

/// Where the sender last saw a node, and which node it means. A store opens the path and answers
/// `ESTALE` where it finds another identity there: names may have moved, bytes are never mixed up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Node {
    /// Which node is meant.
    pub id: FileId,
    /// A path at which the sender last saw it.
    pub path: RelPath,
}

/// A point in time, as `struct timespec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Default)]
pub struct Time {
    /// Seconds since 1970; negative before.
    pub secs: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Time {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Time {
                secs: after.as_secs() as i64,
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => Time {
                        secs: -(before.as_secs() as i64),
                        nanos: 0,
                    },
                    n => Time {
                        secs: -(before.as_secs() as i64) - 1,
                        nanos: 1_000_000_000 - n,
                    },
                }
            }
        }
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> SystemTime {
        let nanos = Duration::from_nanos(u64::from(time.nanos.min(999_999_999)));
        let whole = Duration::from_secs(time.secs.unsigned_abs());
        let base = if time.secs >= 0 {
            UNIX_EPOCH.checked_add(whole)
        } else {
            UNIX_EPOCH.checked_sub(whole)
        };
        base.and_then(|base| base.checked_add(nanos))
            .unwrap_or(UNIX_EPOCH)
    }
}

/// The type of a node, as in `S_IFMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Kind {
    /// A regular file: a region.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Attributes of a node, as `stat(2)` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attr {
    /// Which node this is.
    pub id: FileId,
    /// Its type.
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky: `0o7777`.
    pub mode: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner at the authority.
    pub uid: u32,
    /// Group at the authority.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred block size for I/O, in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
}

impl Attr {
    /// What differs whenever the content may have changed: equal stamps mean that a copy is good.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            size: self.size,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }
}

/// See [`Attr::stamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
}

/// What to change of a node's attributes; `None` leaves a thing as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes: truncates or extends with a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
}

/// A time to set, as in `utimensat(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SetTime {
    /// The authority's clock.
    Now,
    /// This time.
    At(Time),
}

/// What a request makes in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Make {
    /// A regular file, empty.
    File,
    /// A directory, empty.
    Directory,
    /// A symbolic link with this content: 1 to 4095 bytes, no NUL, never followed by the authority.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device with this number.
    CharDevice(u64),
    /// A block device with this number.
    BlockDevice(u64),
}

/// On whose behalf: ids as the authority is to see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// How `rename` treats an existing target (`renameat2(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Access {
    /// Pulls only.
    Read,
    /// Pulls and pushes.
    Write,
}

/// `fallocate(2)`, the modes memfs carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Allocate {
    /// Mode 0: reserve, extending the file.
    Extend,
    /// `FALLOC_FL_KEEP_SIZE`: reserve.
    KeepSize,
    /// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`, extending the file.
    ZeroExtend,
    /// `FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE`.
    ZeroKeepSize,
}

/// How `setxattr(2)` treats an existing attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum XattrMode {
    /// Creates or replaces.
    Set,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// An entry of a directory, with the attributes of what it names. `.` and `..` are not listed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// What it names.
    pub attr: Attr,
    /// Pass it to the next `ReadDir` to go on after this entry; never 0.
    pub cursor: u64,
    /// Names of its extended attributes, each followed by NUL, if they were asked for and are no more than
    /// [`super::ENTRY_XATTRS_BYTES_MAX`].
    pub xattrs: Option<Vec<u8>>,
}

/// `statvfs(3)`, in units of `block_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Default)]
pub struct StatFs {
    /// Bytes in a block.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for ordinary users.
    pub blocks_available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name, in bytes.
    pub name_bytes_max: u32,
}
