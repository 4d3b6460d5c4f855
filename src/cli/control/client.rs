//! The side of the commands.

use super::{Event, Request, socket_paths};
use crate::frontend::fuse::mounts::{self, Mount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So long the process of a mount may take to let a command in. It does so at once, unless it is stopped.
const LET_IN_MAX: Duration = Duration::from_secs(10);

/// A connection to the process of a mount.
pub struct Client {
    stream: BufReader<UnixStream>,
    process: Option<Pid>,
}

impl Client {
    /// Connects to whoever serves `mount`.
    ///
    /// # Errors
    /// One line for the user.
    pub fn connect(mount: &Mount) -> Result<Client, String> {
        let place = mount.mountpoint.display();
        let owner = mount
            .owner
            .ok_or_else(|| format!("{place}: it is not known who mounted it"))?;
        let mut complaint = None;
        for path in socket_paths(mount.device, owner) {
            match connect(&path) {
                Ok(stream) => {
                    return Client::over(stream, owner).map_err(|e| format!("{place}: {e}"));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => complaint = Some(format!("{}: {error}", path.display())),
            }
        }
        let why = complaint.unwrap_or_else(|| "it has no socket".into());
        Err(format!("{place}: its process cannot be reached: {why}"))
    }

    fn over(stream: UnixStream, owner: u32) -> io::Result<Client> {
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        if peer.uid.as_raw() != owner {
            let what = format!("user {} answers instead of user {owner}", peer.uid.as_raw());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        Ok(Client {
            stream: BufReader::new(stream),
            process: Some(peer.pid),
        })
    }

    /// From here on each thing it says may take so long; as long as it likes where that is `None`.
    ///
    /// # Errors
    /// For no time at all.
    pub fn answer_within(&self, time: Option<Duration>) -> Result<(), String> {
        let set = self.stream.get_ref().set_read_timeout(time);
        set.map_err(|e| e.to_string())
    }

    /// Asks.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn ask(&mut self, request: &Request) -> Result<(), String> {
        let mut line = serde_json::to_vec(request).map_err(|e| e.to_string())?;
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        sent.map_err(|e| format!("the process of the mount does not listen: {e}"))
    }

    /// Says that it need not wait for those who still use the mount.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn insist(&mut self) -> Result<(), String> {
        let sent = self.stream.get_mut().write_all(b"\n");
        sent.map_err(|e| format!("the process of the mount does not listen: {e}"))
    }

    /// The next thing it says; `None` at the end.
    ///
    /// # Errors
    /// Where it cannot be understood.
    pub fn next(&mut self) -> Result<Option<Event>, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_str(&line)
                .map(Some)
                .map_err(|e| format!("the process of the mount speaks otherwise: {e}")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(match self.process {
                Some(process) => format!("process {process} does not answer"),
                None => "the process of the mount does not answer".into(),
            }),
            Err(error) => Err(format!("the process of the mount: {error}")),
        }
    }

    /// Waits until the process has ended, `seconds` at most.
    pub fn wait_for_end(&self, seconds: i64) {
        let Some(process) = self.process else { return };
        // Ended already, or not to be seen from here.
        let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else {
            return;
        };
        let limit = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
    }
}

/// As `UnixStream::connect`, but without waiting for ever where too many wait already.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(LET_IN_MAX))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Takes away the socket that a process left behind when it was killed.
pub fn remove_socket(mount: &Mount) {
    for path in socket_paths(mount.device, mount.owner.unwrap_or_default()) {
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if UnixStream::connect(&path).is_err_and(refused) {
            // It is in nobody's way.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// The memfs mount at or above a path; without touching the mount itself if the path is its mount point.
///
/// # Errors
/// One line for the user.
pub fn find(path: &Path) -> Result<Mount, String> {
    resolve(path).map(|(mount, _)| mount)
}

/// The memfs mount at a path, which is to be its mount point.
///
/// # Errors
/// One line for the user.
pub fn find_at(path: &Path) -> Result<Mount, String> {
    let (mount, resolved) = resolve(path)?;
    if mount.mountpoint == resolved {
        return Ok(mount);
    }
    let (path, place) = (path.display(), mount.mountpoint.display());
    Err(format!(
        "{path} is not a mount point: it lies on the mount at {place}"
    ))
}

/// The memfs mount at or above a path, and the path without symbolic links.
fn resolve(path: &Path) -> Result<(Mount, PathBuf), String> {
    let shown = path.display();
    let line = |e: io::Error| format!("{shown}: {e}");
    let resolved = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = match parent.as_os_str().is_empty() {
                true => Path::new("."),
                false => parent,
            };
            parent.canonicalize().map_err(line)?.join(name)
        }
        _ => path.canonicalize().map_err(line)?,
    };
    let mount = holding(&resolved)?;
    if let Some(mount) = mount.filter(|mount| mount.mountpoint == resolved) {
        return Ok((mount, resolved));
    }
    let resolved = path.canonicalize().map_err(line)?;
    let mount = holding(&resolved)?;
    let mount = mount.ok_or_else(|| format!("{shown} is not on a memfs mount"))?;
    Ok((mount, resolved))
}

fn holding(path: &Path) -> Result<Option<Mount>, String> {
    let mount = mounts::holding(path).map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    Ok(mount.filter(Mount::is_memfs))
}
