//! Attributes: read with `statx(2)`, changed through a descriptor.
//!
//! The time of birth in a [`FileId`] has to differ between nodes that had one inode number one
//! after the other. Since Linux 6.13 it does on ext4, XFS, Btrfs and tmpfs: once times were told of a
//! node, its end has a finer one, and no node made later is older. Before, all that happened within
//! one tick (1 to 10 ms) had the same time, and ext4 gives an inode number away again at once. There
//! the generation of the inode is mixed in, which costs three or four more system calls a node.

use crate::store::{Errno, Result};
use crate::sys;
use crate::wire::{Attr, FileId, Kind, Name, SetAttr, SetTime, Time};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use std::sync::LazyLock;

/// The id that `chown(2)` takes for "leave as it is", which therefore is nobody's.
pub const NOBODYS_ID: u32 = u32::MAX;

/// A path that leads to the very node a descriptor holds, for calls that know no `O_PATH`.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Attributes of what a descriptor holds.
pub fn of(fd: impl AsFd) -> Result<Attr> {
    let fd = fd.as_fd();
    let what = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let mut attr = from_statx(&rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, what)?)?;
    if !*TIMES_ARE_FINE {
        attr.id.born ^= generation(fd);
    }
    Ok(attr)
}

/// Attributes of an entry of a directory; a symbolic link is not followed.
pub fn stat_at(dir: impl AsFd, name: &Name) -> Result<Attr> {
    if !*TIMES_ARE_FINE {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        return of(rustix::fs::openat(dir, name.as_os(), flags, Mode::empty())?);
    }
    let what = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    from_statx(&rustix::fs::statx(dir, name.as_os(), flags, what)?)
}

/// Whether this is Linux 6.13 or later.
static TIMES_ARE_FINE: LazyLock<bool> = LazyLock::new(|| {
    let uname = rustix::system::uname();
    let mut parts = uname.release().to_bytes().split(|b| !b.is_ascii_digit());
    let mut part = || str::from_utf8(parts.next()?).ok()?.parse::<u32>().ok();
    (part(), part()) >= (Some(6), Some(13))
});

/// A number that differs between the nodes that had one inode number; 0 where the file system has
/// none that is known to last.
fn generation(fd: BorrowedFd<'_>) -> u64 {
    /// ext2 to ext4, XFS, Btrfs, F2FS.
    const LASTING: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
    let lasts = rustix::fs::fstatfs(fd).is_ok_and(|fs| LASTING.contains(&(fs.f_type as u64)));
    let Some((handle_type, bytes)) = lasts.then(|| sys::file_handle(fd)).flatten() else {
        return 0;
    };
    // FNV-1a: the same in every run, as ids outlive it.
    let bytes = handle_type.to_le_bytes().into_iter().chain(bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
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
    writable: Option<BorrowedFd<'_>>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::fs::File;

    #[test]
    fn generations_last_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut seen = HashSet::new();
        for _ in 0..100 {
            let file = File::create(&path).unwrap();
            let first = generation(file.as_fd());
            if first == 0 {
                println!("skipped: {} has no generations", dir.path().display());
                return;
            }
            file.set_len(5).unwrap();
            assert_eq!(generation(File::open(&path).unwrap().as_fd()), first);
            assert!(seen.insert((of(&file).unwrap().id.ino, first)));
            std::fs::remove_file(&path).unwrap();
        }
    }
}
