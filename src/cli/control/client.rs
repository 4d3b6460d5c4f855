//! The side of the commands.

use super::{Event, Request, socket_paths};
use crate::frontend::fuse::mounts::{self, Mount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

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
            match UnixStream::connect(&path) {
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
        return Ok(mount);
    }
    let resolved = path.canonicalize().map_err(line)?;
    holding(&resolved)?.ok_or_else(|| format!("{shown} is not on a memfs mount"))
}

fn holding(path: &Path) -> Result<Option<Mount>, String> {
    let mount = mounts::holding(path).map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
    Ok(mount.filter(Mount::is_memfs))
}
