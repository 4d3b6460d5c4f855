//! Network namespaces, made and removed by `ip netns`.
//!
//! Their names hold the number of the process that made them, so that a later one finds those whose
//! maker was killed, and removes them.

use crate::process::run;
use crate::sys;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io, thread};

/// What the names of namespaces and devices begin with.
pub const PREFIX: &str = "memfs-bench-";

/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";

/// A network namespace, removed when it is dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one for a side (`a`, `b`) of this process's link; loopback in it is up.
    ///
    /// # Errors
    /// What `ip` complained about.
    pub fn new(side: &str) -> Result<Namespace, String> {
        let name = format!("{PREFIX}{}-{side}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Namespace { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// As `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` for what is in it.
    ///
    /// # Errors
    /// What `ip` complained about.
    pub fn ip(&self, args: &[&str]) -> Result<(), String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(args);
        run(&mut command).map(drop)
    }

    /// Makes a TUN device in it, which has to be given an address.
    ///
    /// # Errors
    /// One line.
    pub fn open_tun(&self, device: &str, super_packets: bool) -> Result<File, String> {
        let space = File::open(path(&self.name)).map_err(|e| format!("{}: {e}", self.name))?;
        // A thread of its own moves there and ends: this one stays where it is.
        let made = thread::scope(|scope| {
            let maker = scope.spawn(|| -> io::Result<File> {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
                sys::open_tun(device, super_packets)
            });
            maker.join()
        });
        match made {
            Ok(made) => made.map_err(|e| format!("no TUN device (/dev/net/tun): {e}")),
            Err(_) => Err("the thread that makes a TUN device panicked".into()),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("memfs-bench: {error}");
        }
    }
}

/// Removes namespaces whose process was killed.
pub fn remove_left_behind() {
    let names = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let maker = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another run may be doing the same.
            let _ = remove(&name);
        }
    }
}

fn remove(name: &str) -> Result<(), String> {
    run(Command::new("ip").args(["netns", "delete", name])).map(drop)
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}
