//! Nodes are made with as little access as they need, then get their owner, then their mode: what
//! is not yet the caller's cannot be opened by others, and no umask has a say.

use super::attributes::{self, NOBODYS_ID, chmod, chown, stat_at};
use super::file::OpenFile;
use super::tree::{Located, reopen_directory};
use crate::store::{Errno, Result};
use crate::wire::{Access, Attr, Caller, Kind, Make, Name};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

const SET_GID: u16 = 0o2000;
/// How often a file is looked for that is neither there nor can be made, as others make and remove
/// it all the time.
const TRIES_MAX: usize = 64;

/// What a new node is to become.
struct Plan {
    /// Permission bits in the end.
    mode: u16,
    /// Permission bits until it has its owner.
    first_mode: u16,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Plan {
    fn new(dir: &Attr, kind: Kind, mode: u16, by: Caller) -> Result<Plan> {
        if by.uid == NOBODYS_ID || by.gid == NOBODYS_ID {
            return Err(Errno::INVAL);
        }
        let user = rustix::process::geteuid();
        let group = rustix::process::getegid();
        let inherits = dir.mode & SET_GID != 0;
        let inherited = if inherits && kind == Kind::Directory {
            SET_GID
        } else {
            0
        };
        let mode = mode & 0o7777 | inherited;
        let uid = (user.is_root() && by.uid != user.as_raw()).then_some(by.uid);
        let gid = user.is_root() && !inherits && by.gid != group.as_raw();
        let gid = gid.then_some(by.gid);
        let changes_hands = uid.is_some() || gid.is_some();
        Ok(Plan {
            mode,
            first_mode: mode & if changes_hands { 0o700 } else { 0o777 },
            uid,
            gid,
        })
    }

    fn first_mode(&self) -> Mode {
        Mode::from_raw_mode(self.first_mode.into())
    }

    /// Gives a new node its owner and mode. A file system that has no owners, or not these modes,
    /// keeps what it gave; then there is no set-uid or set-gid either, as it would be for another's
    /// sake.
    fn finish(&self, fd: &OwnedFd, attr: Attr) -> Result<Attr> {
        let mut mode = self.mode;
        if self.uid.is_some() || self.gid.is_some() {
            match chown(fd, self.uid, self.gid) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::INVAL) => mode &= 0o1777,
                Err(error) => return Err(error),
            }
        } else if attr.kind == Kind::Symlink || attr.mode == mode {
            return Ok(attr);
        }
        if attr.kind != Kind::Symlink {
            match chmod(fd, mode) {
                Ok(()) | Err(Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        attributes::of(fd)
    }
}

/// Makes a node and leaves it closed.
pub fn node(dir: &Located, name: &Name, make: &Make, mode: u16, by: Caller) -> Result<Attr> {
    let (kind, device) = match make {
        Make::File => return Ok(file(dir, name, mode, true, by)?.0),
        Make::Directory => (Kind::Directory, 0),
        Make::Symlink(_) => (Kind::Symlink, 0),
        Make::Fifo => (Kind::Fifo, 0),
        Make::Socket => (Kind::Socket, 0),
        Make::CharDevice(device) => (Kind::CharDevice, *device),
        Make::BlockDevice(device) => (Kind::BlockDevice, *device),
    };
    // The kernel takes 32 bits and would drop the others.
    if u32::try_from(device).is_err() {
        return Err(Errno::INVAL);
    }
    let plan = Plan::new(&dir.attr, kind, mode, by)?;
    let special = |file_type| {
        rustix::fs::mknodat(&dir.fd, name.as_os(), file_type, plan.first_mode(), device)
    };
    match make {
        Make::File | Make::Directory => {
            rustix::fs::mkdirat(&dir.fd, name.as_os(), plan.first_mode())
        }
        Make::Symlink(content) => rustix::fs::symlinkat(&content[..], &dir.fd, name.as_os()),
        Make::Fifo => special(FileType::Fifo),
        Make::Socket => special(FileType::Socket),
        Make::CharDevice(_) => special(FileType::CharacterDevice),
        Make::BlockDevice(_) => special(FileType::BlockDevice),
    }?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&dir.fd, name.as_os(), flags, Mode::empty())?;
    let attr = attributes::of(&fd)?;
    let is_new = attr.kind == kind && looks_new(&fd, &attr, &plan)?;
    match is_new {
        true => plan
            .finish(&fd, attr)
            .inspect_err(|_| undo(dir, name, &attr)),
        false => Ok(attr),
    }
}

/// Whether a node is as it was made. The calls that make these return no descriptor, so somebody may
/// have put another node in its place: that is left as it is, for nobody is to be given what is not
/// new and empty.
fn looks_new(fd: &OwnedFd, attr: &Attr, plan: &Plan) -> Result<bool> {
    let ours = attr.uid == rustix::process::geteuid().as_raw();
    let closed = attr.kind == Kind::Symlink || attr.mode & 0o777 & !plan.first_mode == 0;
    if attr.kind != Kind::Directory || plan.uid.is_none() && plan.gid.is_none() {
        return Ok(ours && closed);
    }
    let mut entries = Dir::new(reopen_directory(fd)?)?;
    let only_dots = entries.all(|entry| {
        let name = entry.as_ref().map(|entry| entry.file_name().to_bytes());
        matches!(name, Ok(b"." | b".."))
    });
    Ok(ours && closed && only_dots)
}

/// Removes what could not be finished, so that nothing half-made stays (a quota of its owner may
/// forbid it).
fn undo(dir: &Located, name: &Name, made: &Attr) {
    let flags = match made.kind {
        Kind::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    };
    if stat_at(&dir.fd, name).is_ok_and(|attr| attr.id == made.id) {
        // The first error is what is told.
        let _ = rustix::fs::unlinkat(&dir.fd, name.as_os(), flags);
    }
}

/// Makes a regular file, or opens the one that is there unless `exclusive`.
pub fn file(
    dir: &Located,
    name: &Name,
    mode: u16,
    exclusive: bool,
    by: Caller,
) -> Result<(Attr, OpenFile)> {
    let plan = Plan::new(&dir.attr, Kind::File, mode, by)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat(&dir.fd, name.as_os(), flags, plan.first_mode()) {
            Ok(fd) => {
                let attr = attributes::of(&fd)?;
                let finished = plan.finish(&fd, attr);
                let attr = finished.inspect_err(|_| undo(dir, name, &attr))?;
                return Ok((attr, OpenFile::new(fd, Access::Write)));
            }
            Err(Errno::EXIST) if !exclusive => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        }
        match existing(dir, name) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
    }
    Err(Errno::BUSY)
}

fn existing(dir: &Located, name: &Name) -> Result<(Attr, OpenFile)> {
    if stat_at(&dir.fd, name)?.kind != Kind::File {
        return Err(Errno::EXIST);
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&dir.fd, name.as_os(), flags, Mode::empty())?;
    let attr = attributes::of(&fd)?;
    let file = OpenFile::reopen(&fd, attr.kind, Access::Write)?;
    Ok((attr, file))
}
