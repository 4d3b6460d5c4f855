//! The systems that are measured: how each serves a folder on one side of a link and mounts it on the
//! other. Every run has a server, a mount and a cache of its own, so that all begin cold.
//!
//! | file | system |
//! |---|---|
//! | `memfs` | memfs |
//! | `raw` | a bare transfer between the same two ends, which mounts nothing |
//! | `ssh` | sshfs with its defaults and tuned, rclone over sftp, and their sshd |
//! | `nbd` | nbdfuse over nbdkit |
//!
//! `local` is the served file itself, on tmpfs.

mod memfs;
mod nbd;
mod raw;
mod ssh;

use crate::link::{Link, Side};
use crate::process::{Group, PATIENCE, interrupted, run_within, start, wait_for};
use rustix::mount::UnmountFlags;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The name of the served file.
pub const FILE: &str = "data";
/// Where servers listen; a link's namespaces are otherwise empty.
const PORT: u16 = 4433;
/// A mount that takes longer has failed, and so has an unmount.
const MOUNT_MAX: Duration = Duration::from_secs(60);

/// A system that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum System {
    /// memfs
    Memfs,
    /// A bare QUIC transfer
    Raw,
    /// nbdfuse over nbdkit
    Nbdfuse,
    /// sshfs, tuned
    SshfsTuned,
    /// sshfs as it comes
    Sshfs,
    /// rclone mount over sftp with a full cache
    Rclone,
    /// The file itself
    Local,
}

impl System {
    /// As it is typed and shown.
    pub fn name(self) -> &'static str {
        match self {
            System::Memfs => "memfs",
            System::Raw => "raw",
            System::Nbdfuse => "nbdfuse",
            System::SshfsTuned => "sshfs-tuned",
            System::Sshfs => "sshfs",
            System::Rclone => "rclone",
            System::Local => "local",
        }
    }

    /// What is recorded as its settings.
    pub fn settings(self) -> String {
        match self {
            System::Memfs => memfs::SETTINGS.into(),
            System::Raw => "memfs::transport, one stream".into(),
            System::Nbdfuse => nbd::SETTINGS.into(),
            System::SshfsTuned => format!("-o {}", ssh::TUNED),
            System::Sshfs => "defaults".into(),
            System::Rclone => ssh::RCLONE_SETTINGS.into(),
            System::Local => "tmpfs".into(),
        }
    }
}

/// Where a run takes place.
pub struct Place<'a> {
    /// Between both sides.
    pub link: &'a Link,
    /// The memfs program.
    pub memfs: &'a Path,
    /// The folder that is served.
    pub served: &'a Path,
    /// Keys and configuration, the same for all runs.
    pub home: &'a Path,
    /// For this run alone: mount points, caches, logs.
    pub room: &'a Path,
}

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Bring only what is asked for, where a system can be told so.
    pub demand: bool,
    /// Refuse changes, and say that there will be none (memfs).
    pub read_only: bool,
    /// Without the cache of earlier mounts (memfs).
    pub cold: bool,
    /// Do without what is learned of earlier uses (memfs).
    pub forgetful: bool,
    /// Let the kernel keep names.
    pub keep_names: bool,
}

/// A server, and what may mount it.
pub struct Session<'a> {
    /// What is served how.
    pub system: System,
    /// Where.
    pub place: &'a Place<'a>,
    /// The programs of the mounting side.
    pub client: Group,
    /// The programs of the serving side.
    pub server: Group,
    /// The programs that use the mount. They end after the mount does, because one that waits for it
    /// cannot be killed.
    pub work: Group,
    address: String,
    port: u16,
    /// What else a client needs to know.
    key: String,
    serving: Option<Child>,
}

impl<'a> Session<'a> {
    /// Starts the server and waits until it is ready.
    ///
    /// # Errors
    /// One line.
    pub fn start(system: System, place: &'a Place<'a>) -> Result<Session<'a>, String> {
        let mut session = Session {
            system,
            place,
            client: Group::new("client"),
            server: Group::new("server"),
            work: Group::new("work"),
            address: place.link.server().into(),
            port: PORT,
            key: String::new(),
            serving: None,
        };
        match system {
            System::Memfs => memfs::serve(&mut session),
            System::Raw => raw::serve(&mut session),
            System::Nbdfuse => nbd::serve(&mut session),
            System::Sshfs | System::SshfsTuned | System::Rclone => ssh::serve(&mut session),
            System::Local => Ok(()),
        }?;
        Ok(session)
    }

    /// Mounts what is served; a second time with the cache of the first.
    ///
    /// # Errors
    /// One line.
    pub fn mount(&self, how: How) -> Result<Mount, String> {
        let point = self.place.room.join("mnt");
        fs::create_dir_all(&point).map_err(|e| format!("{}: {e}", point.display()))?;
        let mut mount = Mount {
            file: point.join(FILE),
            point,
            mounted: true,
            umount: None,
            child: None,
            log: self.log("umount"),
            seconds: 0.0,
        };
        let begin = Instant::now();
        match self.system {
            System::Memfs => memfs::mount(self, &mut mount, how)?,
            System::Nbdfuse => nbd::mount(self, &mut mount)?,
            System::Sshfs => ssh::sshfs(self, &mut mount, None)?,
            System::SshfsTuned => ssh::sshfs(self, &mut mount, Some(ssh::TUNED))?,
            System::Rclone => ssh::rclone(self, &mut mount)?,
            System::Local => {
                mount.file = self.place.served.join(FILE);
                mount.mounted = false;
            }
            System::Raw => return Err("raw mounts nothing".into()),
        }
        mount.seconds = begin.elapsed().as_secs_f64();
        Ok(mount)
    }

    /// Seconds of a bare transfer.
    ///
    /// # Errors
    /// One line.
    pub fn transfer(&self, bytes: u64, write: bool) -> Result<f64, String> {
        let args = write.then(|| "--write".to_owned());
        let printed = raw::ask(self, bytes, args.as_slice())?;
        let seconds = printed.parse();
        seconds.map_err(|_| format!("raw printed no seconds: {printed}"))
    }

    /// Exchanges by the bare transfer, `tasks` at once, as [`crate::workloads::Latencies`] prints them.
    ///
    /// # Errors
    /// One line.
    pub fn exchange(&self, bytes: u64, longest: Duration, tasks: usize) -> Result<String, String> {
        let millis = longest.as_millis();
        let args = [format!("--exchange={millis}"), format!("--tasks={tasks}")];
        raw::ask(self, bytes, &args)
    }

    /// A program on one side.
    fn command(&self, side: Side, program: impl AsRef<Path>) -> Command {
        let group = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        group.command(&self.place.link.prefix(side), program.as_ref())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.place.room.join(format!("{name}.log"))
    }

    fn address(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.client.kill();
        self.server.kill();
        if let Some(serving) = &mut self.serving {
            let _ = serving.kill(); // where there are no groups
            let _ = serving.wait();
        }
    }
}

/// A mounted file.
pub struct Mount {
    /// The served file, as it is seen here.
    pub file: PathBuf,
    /// From the start of the mounting program until the mount was there.
    pub seconds: f64,
    point: PathBuf,
    mounted: bool,
    /// The system's own way; without it umount(8).
    umount: Option<Command>,
    /// A program that mounts and stays.
    child: Option<Child>,
    log: PathBuf,
}

impl Mount {
    /// Unmounts, when all is pushed.
    ///
    /// # Errors
    /// One line.
    pub fn unmount(mut self) -> Result<(), String> {
        if !self.mounted {
            return Ok(());
        }
        let mut umount = self.umount.take().unwrap_or_else(|| {
            let mut umount = Command::new("umount");
            umount.arg(&self.point);
            umount
        });
        run_within(&mut umount, &self.log, MOUNT_MAX)?;
        self.mounted = is_mounted(&self.point)?;
        if let Some(child) = &mut self.child {
            wait_for("the end of the mount", MOUNT_MAX, || {
                child.try_wait().map_err(|e| e.to_string())
            })?;
        }
        Ok(())
    }

    /// Waits until the kernel shows it; the error is what the program complained about.
    fn appears(&mut self, log: &Path) -> Result<(), String> {
        let (point, child) = (&self.point, &mut self.child);
        wait_for("the mount", MOUNT_MAX, || {
            if is_mounted(point)? {
                return Ok(Some(()));
            }
            let ended = child.as_mut().map(Child::try_wait);
            match ended {
                Some(Ok(Some(status))) => Err(format!("{status}: {}", complaint(log))),
                _ => Ok(None),
            }
        })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever waits in it is freed.
        if self.mounted || is_mounted(&self.point).unwrap_or(true) {
            let _ = rustix::mount::unmount(&self.point, UnmountFlags::FORCE);
            let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Looks at the table of mounts only: a look at the mount itself may wait for ever.
fn is_mounted(point: &Path) -> Result<bool, String> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let point = point.to_string_lossy();
    Ok(table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&*point)))
}

fn complaint(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    crate::process::last_line(&text).to_owned()
}

/// Starts a server and waits for a line in its log.
fn serve(session: &mut Session, command: &mut Command, sign: &str) -> Result<String, String> {
    let log = &session.log("server");
    let child = session.serving.insert(start(command, log)?);
    wait_for(sign, PATIENCE, || {
        let text = fs::read_to_string(log).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.contains(sign)) {
            return Ok(Some(line.to_owned()));
        }
        match child.try_wait() {
            Ok(Some(status)) if !interrupted() => Err(format!("{status}: {}", complaint(log))),
            _ => Ok(None),
        }
    })
}

/// What all runs share.
///
/// # Errors
/// One line.
pub fn prepare(home: &Path) -> Result<(), String> {
    memfs::prepare(home)?;
    ssh::prepare(home)
}
