//! The process beside the one that serves a mount, for what that one cannot do. It ends when the first does.
//!
//! **Writing back** pages dirtied through mappings. The kernel does it for whoever opens the file and calls
//! `sync_file_range(2)` on it. The process that serves the mount must not do that itself: were it killed while
//! a thread of its own waits for an answer of its own, that thread could not end, so `/dev/fuse` would stay
//! open, so the answer would never be given up on. This process has no descriptor of `/dev/fuse`. It keeps
//! nothing open between two calls, as that would keep the mount from being unmounted.
//!
//! **Giving up**. A notice to drop a page waits in the kernel while a READ holds the page. Where the process is
//! killed then, nobody answers the READ, the notice does not end, and neither does the process nor anybody who
//! uses the mount. So when its first thread is dead and its end of the socket is still open a moment later,
//! the connection is aborted.
//!
//! ```text
//! request: node (u64, little-endian; 0: all of them) · path below the mount point
//! answer:  an errno (i32, little-endian), 0 where it went well
//! ```
//!
//! The first message is the device number (two u32) and the mount point, and has no answer.

use super::mounts::Device;
use crate::node::replica::NodeNo;
use crate::sys::{self, ParentDeath};
use crate::wire::RelPath;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The longest message: two numbers and a path.
const MESSAGE_BYTES_MAX: usize = 8 + libc::PATH_MAX as usize;

/// What the program is called when it is to be the helper.
pub const HELPER_NAME: &str = "memfs-writeback";

/// Where the system has `fusectl` mounted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// So long a killed process takes at most to close its descriptors, if nothing holds it.
const BURIAL: Duration = Duration::from_secs(1);

/// Stands for all nodes in a request.
const ALL: NodeNo = NodeNo(0);

/// The helper process, as seen by the one that serves.
pub struct Helper {
    socket: Mutex<OwnedFd>,
    pid: u32,
    /// How many want it to keep away from the mount.
    resting: AtomicU32,
}

/// While it lives the helper has nothing of the mount open: what is asked of it counts as done.
pub struct Rest(Arc<Helper>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.resting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Helper {
    /// Starts it: this very program, called [`HELPER_NAME`], which then has to call [`help`]. To be called from
    /// a thread that lives as long as the process: it is what the helper watches.
    ///
    /// # Errors
    /// As `socketpair(2)` and `execve(2)`.
    pub fn start() -> io::Result<Helper> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let child = Command::new("/proc/self/exe")
            .arg0(HELPER_NAME)
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Helper {
            socket: Mutex::new(ours),
            pid: child.id(),
            resting: AtomicU32::new(0),
        })
    }

    /// Keeps the helper away from the mount, which can then be unmounted if nobody else uses it. Waits until the
    /// helper has done what it is doing.
    pub fn rest(self: &Arc<Self>) -> Rest {
        self.resting.fetch_add(1, Ordering::AcqRel);
        drop(self.socket.lock());
        Rest(self.clone())
    }

    /// Its process number: what it opens is not opened by a program.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// From here on it works for this mount.
    pub(super) fn watch(&self, device: Device, mountpoint: &Path) {
        let mut message = Vec::with_capacity(MESSAGE_BYTES_MAX);
        message.extend_from_slice(&device.major.to_le_bytes());
        message.extend_from_slice(&device.minor.to_le_bytes());
        message.extend_from_slice(mountpoint.as_os_str().as_bytes());
        if let Err(why) = rustix::net::send(&*self.socket.lock(), &message, SendFlags::NOSIGNAL) {
            tracing::warn!("the helper process does not listen: {why}");
        }
    }

    /// Has the dirty pages of a file written back, and waits. Where the file is not found at `path` any more,
    /// as [`Helper::write_back_all`].
    ///
    /// # Errors
    /// As `openat2(2)` and `sync_file_range(2)`; where the helper is gone.
    pub(super) fn write_back(&self, node: NodeNo, path: &RelPath) -> io::Result<()> {
        self.ask(node, path.as_os())
    }

    /// Has the writing back of all dirty pages started.
    ///
    /// # Errors
    /// As `open(2)` and `syncfs(2)`; where the helper is gone.
    pub fn write_back_all(&self) -> io::Result<()> {
        self.ask(ALL, OsStr::new(""))
    }

    fn ask(&self, node: NodeNo, path: &OsStr) -> io::Result<()> {
        let mut message = node.0.to_le_bytes().to_vec();
        message.extend_from_slice(path.as_bytes());
        // One request at a time: the lock is held until its answer is here.
        let socket = self.socket.lock();
        if self.resting.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        rustix::net::send(&*socket, &message, SendFlags::NOSIGNAL)?;
        let mut answer = [0; 4];
        let len = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&*socket, &mut answer[..], RecvFlags::empty())
        })?;
        match i32::from_le_bytes(answer) {
            _ if len.0 != answer.len() => Err(io::ErrorKind::UnexpectedEof.into()),
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The helper's life, until the other end of its standard input is gone.
///
/// # Errors
/// Where standard input is not what [`Helper::start`] makes it.
pub fn help() -> io::Result<()> {
    // Out of the reach of terminals and service managers: it ends when it is not needed any more.
    sys::ignore_end_signals();
    rustix::process::setsid()?;
    rustix::thread::set_name(c"memfs-writeback")?;
    let death = ParentDeath::watch()?;
    let socket = rustix::stdio::stdin();
    let (mut mount, mut death) = (None, Some(death));
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let (_, len) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, &mut message[..], RecvFlags::empty())
        })?;
        if len == 0 {
            return Ok(());
        }
        let Some((number, path)) = message[..len].split_first_chunk::<8>() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let path = OsStr::from_bytes(path);
        let Some(mount) = &mount else {
            let watched = Watched::new(*number, path);
            if let Some(death) = death.take() {
                let device = watched.device;
                std::thread::spawn(move || give_up(&death, device));
            }
            mount = Some(watched);
            continue;
        };
        let node = NodeNo(u64::from_le_bytes(*number));
        let errno = match mount.write_back(node, path) {
            Ok(()) => 0,
            Err(errno) => errno.raw_os_error(),
        };
        rustix::net::send(socket, &errno.to_le_bytes(), SendFlags::NOSIGNAL)?;
    }
}

/// Waits for the death of the one that serves, and aborts the connection if that is not the end of it.
fn give_up(death: &ParentDeath, device: Device) {
    death.wait();
    // Where all goes well, the socket is closed, and so this process ends, long before.
    std::thread::sleep(BURIAL);
    // Nobody is there to be told of an error.
    let _ = abort(device);
}

/// Has the kernel answer all requests with an error, by the file of the connection in `fusectl`.
fn abort(device: Device) -> rustix::io::Result<()> {
    let name = format!("{}/abort", device.minor);
    let open = |folder: BorrowedFd| {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(folder, &name, flags, Mode::empty())
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let there = rustix::fs::open(CONNECTIONS, flags, Mode::empty());
    let file = match there.and_then(|folder| open(folder.as_fd())) {
        Ok(file) => file,
        // Nobody has mounted it. Root can, without anybody seeing it.
        Err(_) => {
            let fusectl = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&fusectl)?;
            let flags = FsMountFlags::FSMOUNT_CLOEXEC;
            let folder = fsmount(&fusectl, flags, MountAttrFlags::empty())?;
            open(folder.as_fd())?
        }
    };
    rustix::io::write(&file, b"1")?;
    Ok(())
}

/// The mount that the helper works for.
struct Watched {
    device: Device,
    mountpoint: PathBuf,
}

impl Watched {
    fn new(numbers: [u8; 8], mountpoint: &OsStr) -> Watched {
        let [a, b, c, d, e, f, g, h] = numbers;
        Watched {
            device: Device {
                major: u32::from_le_bytes([a, b, c, d]),
                minor: u32::from_le_bytes([e, f, g, h]),
            },
            mountpoint: PathBuf::from(mountpoint),
        }
    }

    fn write_back(&self, node: NodeNo, path: &OsStr) -> rustix::io::Result<()> {
        let root = self.root()?;
        if node == ALL {
            return sync_all(&root);
        }
        match open(&root, node, path) {
            Ok(file) => {
                sys::write_back(&file).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            }
            // Moved, unlinked, or not readable by us: its pages are among all there are.
            Err(_) => sync_all(&root),
        }
    }

    /// The mount's root, provided that it is still this mount that is there.
    fn root(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &self.mountpoint, flags, Mode::empty())?;
        let (device, _) = identity(&root)?;
        if device == self.device {
            Ok(root)
        } else {
            Err(Errno::NODEV)
        }
    }
}

/// Device and inode number as the kernel has them. `fstat(2)` would ask the server for the attributes.
fn identity(file: impl AsFd) -> rustix::io::Result<(Device, u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = rustix::fs::statx(file, c"", flags, StatxFlags::INO)?;
    let device = Device {
        major: status.stx_dev_major,
        minor: status.stx_dev_minor,
    };
    Ok((device, status.stx_ino))
}

fn open(root: &OwnedFd, node: NodeNo, path: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), stay)?;
    let (_, inode) = identity(&file)?;
    if inode == node.0 {
        Ok(file)
    } else {
        Err(Errno::STALE)
    }
}

fn sync_all(root: &OwnedFd) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::syncfs(rustix::fs::openat(root, c".", flags, Mode::empty())?)
}
