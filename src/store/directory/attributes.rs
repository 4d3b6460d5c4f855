//! Attributes: read with `statx(2)`, changed through a descriptor.

use crate::store::{Errno, Result};
use crate::wire::{Attr, FileId, Kind, Name, SetAttr, SetTime, Time};
use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

/// The id that `chown(2)` takes for "leave as it is", which therefore is nobody's.
pub const NOBODYS_ID: u32 = u32::MAX;

/// A path that leads to the very node a descriptor holds, for calls that know no `O_PATH`.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Attributes of what a descriptor holds.
pub fn of(fd: impl AsFd) -> Result<Attr> {
    let what = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    from_statx(&rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, what)?)
}

/// Attributes of an entry of a directory; a symbolic link is not followed.
pub fn stat_at(dir: impl AsFd, name: &Name) -> Result<Attr> {
    let what = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    from_statx(&rustix::fs::statx(dir, name.as_os(), flags, what)?)
}

fn from_statx(stat: &Statx) -> Result<Attr> {
    let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => return Err(Errno::IO),
    };
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    Ok(Attr {
        id: FileId {
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            born: if has_birth { nanos(&stat.stx_btime) } else { 0 },
        },
        kind,
        mode: stat.stx_mode & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        blksize: stat.stx_blksize,
        atime: time(&stat.stx_atime),
        mtime: time(&stat.stx_mtime),
        ctime: time(&stat.stx_ctime),
    })
}

/// Only ever compared, so that wrapping round after the year 2554 does no harm.
fn nanos(time: &StatxTimestamp) -> u64 {
    let secs = (time.tv_sec as u64).wrapping_mul(1_000_000_000);
    secs.wrapping_add(u64::from(time.tv_nsec))
}

fn time(time: &StatxTimestamp) -> Time {
    Time {
        secs: time.tv_sec,
        nanos: time.tv_nsec,
    }
}

/// Changes attributes of what `fd` holds, which are `old`, in the order size, owner, mode, times
/// (each may undo a part of the next), and returns the new ones. `writable` is a descriptor of the
/// same file open for writing, if there is one.
pub fn change(
    fd: impl AsFd,
    old: &Attr,
    set: &SetAttr,
    writable: Option<rustix::fd::BorrowedFd<'_>>,
) -> Result<Attr> {
    let times = times(set)?;
    if let Some(size) = set.size {
        match writable {
            Some(file) => rustix::fs::ftruncate(file, size)?,
            None => truncate(&fd, old.kind, size)?,
        }
    }
    change_owner(&fd, old, set)?;
    if let Some(mode) = set.mode {
        chmod(&fd, mode)?;
    }
    if let Some(times) = times {
        rustix::fs::utimensat(&fd, c"", &times, AtFlags::EMPTY_PATH)?;
    }
    of(fd)
}

/// Sets the permission bits, whatever the umask.
pub fn chmod(fd: impl AsFd, mode: u16) -> Result<()> {
    let mode = Mode::from_raw_mode(u32::from(mode & 0o7777));
    rustix::fs::chmodat(CWD, proc_path(fd), mode, AtFlags::empty())
}

/// Sets owner and group where they are given.
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    if uid == Some(NOBODYS_ID) || gid == Some(NOBODYS_ID) {
        return Err(Errno::INVAL);
    }
    let uid = uid.map(Uid::from_raw);
    let gid = gid.map(Gid::from_raw);
    rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
}

/// One who is not root may "change" owners to what they are; the kernel would refuse that for
/// files of others.
fn change_owner(fd: impl AsFd, old: &Attr, set: &SetAttr) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let uid = set.uid.filter(|&uid| root || uid != old.uid);
    let gid = set.gid.filter(|&gid| root || gid != old.gid);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    chown(fd, uid, gid)
}

fn truncate(fd: impl AsFd, kind: Kind, size: u64) -> Result<()> {
    match kind {
        Kind::File => {}
        Kind::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::INVAL),
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, proc_path(fd), flags, Mode::empty())?;
    rustix::fs::ftruncate(file, size)
}

/// `None` if no time is to be set. `EINVAL` for nanoseconds that are none: `utimensat(2)` gives
/// some of those a meaning.
fn times(set: &SetAttr) -> Result<Option<Timestamps>> {
    if set.atime.is_none() && set.mtime.is_none() {
        return Ok(None);
    }
    let spec = |time: Option<SetTime>| {
        let (secs, nanos) = match time {
            None => (0, UTIME_OMIT),
            Some(SetTime::Now) => (0, UTIME_NOW),
            Some(SetTime::At(at)) if at.nanos < 1_000_000_000 => (at.secs, at.nanos.into()),
            Some(SetTime::At(_)) => return Err(Errno::INVAL),
        };
        Ok(Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        })
    };
    Ok(Some(Timestamps {
        last_access: spec(set.atime)?,
        last_modification: spec(set.mtime)?,
    }))
}
