//! Mounting and unmounting: `mount(2)` for root, `fusermount3` (set-uid root) for everybody else.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";

/// How and where to mount.
#[derive(Clone, Debug)]
pub struct Mounting {
    /// An existing directory: absolute, without symbolic links.
    pub mountpoint: PathBuf,
    /// What `/proc/mounts` is to show as mounted.
    pub source: String,
    /// Refuse changes.
    pub read_only: bool,
    /// Let other users in, as far as modes and owners allow.
    pub allow_other: bool,
    /// Honour set-uid bits (root only).
    pub suid: bool,
    /// Honour device nodes (root only).
    pub dev: bool,
    /// Let programs on it be executed.
    pub exec: bool,
}

/// Whether this user can open the device, which a second queue needs.
pub(super) fn can_open_device() -> bool {
    open_device().is_ok()
}

fn open_device() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Mounts, and returns the descriptor that the kernel's requests come from.
///
/// # Errors
/// One line for the user.
pub(super) fn mount(how: &Mounting) -> Result<OwnedFd, String> {
    if rustix::process::geteuid().is_root() {
        match mount_directly(how) {
            // Root of a container may lack the right and still have the helper.
            Err(Errno::PERM) => {}
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                return Err(format!(
                    "no {DEVICE}: the kernel has no FUSE (modprobe fuse)"
                ));
            }
            Err(error) => return Err(format!("{}: {error}", how.mountpoint.display())),
        }
    }
    mount_with_helper(how)
}

fn mount_directly(how: &Mounting) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let fd = open_device()?;
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        fd.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if how.allow_other { ",allow_other" } else { "" },
    );
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        how.source.as_str(),
        &how.mountpoint,
        format!("fuse.{}", super::SUBTYPE),
        flags(how),
        options.as_c_str(),
    )?;
    Ok(fd)
}

fn flags(how: &Mounting) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, how.read_only);
    flags.set(MountFlags::NOSUID, !how.suid);
    flags.set(MountFlags::NODEV, !how.dev);
    flags.set(MountFlags::NOEXEC, !how.exec);
    flags
}

/// Changes the flags of a mount: all but its source and who is let in.
///
/// # Errors
/// As `mount(2)`: `EBUSY` where it is to become read-only and a file is open for writing.
pub fn remount(how: &Mounting) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(
        &how.mountpoint,
        flags(how),
        c"",
    )?)
}

/// `fusermount3` mounts and sends the descriptor over a socket, which is its standard input here.
fn mount_with_helper(how: &Mounting) -> Result<OwnedFd, String> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| format!("socketpair: {e}"))?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(helper_options(how))
        .arg("--")
        .arg(&how.mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                format!("{FUSERMOUNT} is not installed: mounting as an ordinary user needs it (package fuse3)")
            }
            _ => format!("{FUSERMOUNT}: {e}"),
        })?;
    let received = receive_descriptor(&ours);
    let output = child
        .wait_with_output()
        .map_err(|e| format!("{FUSERMOUNT}: {e}"))?;
    match received {
        Ok(Some(fd)) if output.status.success() => Ok(fd),
        Err(error) => Err(format!("{FUSERMOUNT}: {error}")),
        Ok(_) => Err(said(&output.stderr, "it said nothing")),
    }
}

fn helper_options(how: &Mounting) -> OsString {
    let mut options = b"default_permissions,subtype=".to_vec();
    options.extend_from_slice(super::SUBTYPE.as_bytes());
    let flags = [
        (how.read_only, "ro"),
        (how.allow_other, "allow_other"),
        (how.suid, "suid"),
        (how.dev, "dev"),
        (!how.exec, "noexec"),
    ];
    for (_, name) in flags.iter().filter(|(set, _)| *set) {
        options.push(b',');
        options.extend_from_slice(name.as_bytes());
    }
    options.extend_from_slice(b",fsname=");
    for byte in how.source.bytes() {
        if byte == b',' || byte == b'\\' {
            options.push(b'\\');
        }
        options.push(byte);
    }
    OsString::from_vec(options)
}

/// `None` where the other side went away without sending one.
fn receive_descriptor(socket: &UnixStream) -> rustix::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut buffers,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fd)
}

/// What `fusermount3` said, as one line in our own voice.
fn said(stderr: &[u8], nothing: &str) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| format!("{FUSERMOUNT}: {nothing}"), str::to_owned)
}

/// Unmounts; `lazily` also where it is in use: then it is gone from sight, and from the kernel when its last
/// user is.
///
/// # Errors
/// `EBUSY` where it is in use; otherwise what `fusermount3` said.
pub fn unmount(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazily);
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => unmount_with_helper(mountpoint, lazily),
        result => Ok(result?),
    }
}

fn unmount_with_helper(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(mountpoint)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{FUSERMOUNT}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = said(&output.stderr, "it failed");
    if said.contains("busy") {
        return Err(Errno::BUSY.into());
    }
    Err(io::Error::other(said))
}
