//! The kernel's words and ours.

use crate::node::replica::Entry;
use crate::wire::{Allocate, Kind, Make, Name, RenameMode, SetTime, Time, XattrMode};
use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// The block size that `stat(2)` shows. The kernel derives the size of its own blocks in the page cache
/// from it, which is a page whatever the store prefers.
const BLOCK_BYTES: u32 = 4096;

pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(entry: &Entry) -> FileAttr {
    let attr = &entry.attr;
    FileAttr {
        ino: INodeNo(entry.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The kernel's 32 bits are the lower ones of what `stat(2)` shows.
        rdev: attr.rdev as u32,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Of a name that there is not: the number 0 says so, and nothing else is looked at.
pub(super) fn no_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// A name of an entry. The kernel asks for none that is empty, a dot or two, or has a slash in it.
pub(super) fn name(name: &OsStr) -> Result<Name, Errno> {
    Name::from_os(name).ok_or(Errno::NAMETOOLONG)
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(asked_time(time)),
    }
}

/// A time from the kernel. Before 1970 fuser takes the nanoseconds, which count forward, away from the
/// seconds: -2 s and 0.8 s arrive as 2.8 s before 1970 and not as 1.2 s. This takes it back.
fn asked_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(before) => Time {
            secs: 0i64.saturating_sub_unsigned(before.duration().as_secs()),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

/// The last byte that a file can have, as the kernel has it.
pub(super) const OFFSET_MAX: u64 = i64::MAX as u64;

/// What `mknod(2)` makes.
pub(super) fn make(mode: u32, rdev: u32) -> Result<Make, Errno> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(Make::File),
        libc::S_IFIFO => Ok(Make::Fifo),
        libc::S_IFSOCK => Ok(Make::Socket),
        libc::S_IFCHR => Ok(Make::CharDevice(u64::from(rdev))),
        libc::S_IFBLK => Ok(Make::BlockDevice(u64::from(rdev))),
        _ => Err(Errno::INVAL),
    }
}

/// Permission bits with set-uid, set-gid and sticky.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode, Errno> {
    match flags {
        RenameFlags::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        none if none.is_empty() => Ok(RenameMode::Replace),
        _ => Err(Errno::INVAL),
    }
}

pub(super) fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::INVAL),
    }
}

pub(super) fn allocate(mode: i32) -> Result<Allocate, Errno> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Ok(Allocate::Extend),
        KEEP => Ok(Allocate::KeepSize),
        PUNCH => Ok(Allocate::PunchHole),
        ZERO => Ok(Allocate::ZeroExtend),
        ZERO_KEEP => Ok(Allocate::ZeroKeepSize),
        _ => Err(Errno::OPNOTSUPP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_before_1970_arrive_as_meant() {
        // What fuser makes of -2 s and 800,000,000 ns.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let time = asked_time(from_fuser);
        assert_eq!((time.secs, time.nanos), (-2, 800_000_000));
        let time = asked_time(UNIX_EPOCH + Duration::new(3, 7));
        assert_eq!((time.secs, time.nanos), (3, 7));
    }

    #[test]
    fn names_that_are_too_long() {
        assert_eq!(name(OsStr::new(&"x".repeat(256))), Err(Errno::NAMETOOLONG));
        assert!(name(OsStr::new("a b")).is_ok());
    }

    #[test]
    fn flags_that_are_not_carried() {
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), Err(Errno::INVAL));
        let both = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        assert_eq!(rename_mode(both), Err(Errno::INVAL));
        assert_eq!(allocate(libc::FALLOC_FL_PUNCH_HOLE), Err(Errno::OPNOTSUPP));
        assert_eq!(
            allocate(libc::FALLOC_FL_COLLAPSE_RANGE),
            Err(Errno::OPNOTSUPP)
        );
        assert_eq!(make(libc::S_IFDIR, 0), Err(Errno::INVAL));
    }
}
