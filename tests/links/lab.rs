//! Two machines with a router between them, as network namespaces of a test's own.
//!
//! ```text
//!   mounting ──── 10.77.1.0/24 ──── router ──── 10.77.2.0/24 ──── serving
//!   .2, then others                 .1     .1                     .2
//! ```
//!
//! A cut is one on the way: the router drops everything, and neither machine is told. What is run in a namespace has its
//! network alone; files, mounts and processes are everybody's.

use crate::common::{is_root, skip};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the serving machine is.
pub const SERVER: &str = "10.77.2.2";

/// A network namespace, removed when it is dropped.
struct Namespace(String);

impl Namespace {
    fn new(name: String) -> Result<Namespace, String> {
        try_ip(&["netns", "add", &name])?;
        let namespace = Namespace(name);
        try_ip(&["-n", &namespace.0, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Runs `ip` for what is in it.
    #[track_caller]
    fn ip(&self, args: &str) {
        self.try_ip(args).unwrap();
    }

    fn try_ip(&self, args: &str) -> Result<(), String> {
        let args: Vec<_> = ["-n", &self.0].into_iter().chain(args.split(' ')).collect();
        try_ip(&args)
    }

    /// Does something there, and so do the processes that are started meanwhile.
    fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let space = File::open(format!("/run/netns/{}", self.0)).unwrap();
        // A thread of its own moves there and ends: this one stays where it is.
        let done = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(space.as_fd(), network).unwrap();
                work()
            });
            worker.join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status();
    }
}

fn try_ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("ip {}: {said}", args.join(" ")))
        }
    }
}

/// Of the way between the machines.
pub struct Cut<'a>(&'a Lab);

impl Cut<'_> {
    /// Everything gets through again.
    pub fn mend(self) {}
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.forward("1");
    }
}

/// The machines.
pub struct Lab {
    mounting: Namespace,
    router: Namespace,
    serving: Namespace,
}

impl Lab {
    /// `None`, and it is said that `test` is left out, where there cannot be one.
    pub fn new(test: &str) -> Option<Lab> {
        if !is_root() {
            skip(test, "network namespaces need root");
            return None;
        }
        match Lab::make() {
            Ok(lab) => Some(lab),
            Err(why) => {
                skip(test, &format!("no network namespaces with veth: {why}"));
                None
            }
        }
    }

    fn make() -> Result<Lab, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("memfs-test-{}-{count}-{side}", std::process::id());
        let lab = Lab {
            mounting: Namespace::new(name("mounting"))?,
            router: Namespace::new(name("router"))?,
            serving: Namespace::new(name("serving"))?,
        };
        lab.join(&lab.mounting, "near", "10.77.1")?;
        lab.join(&lab.serving, "far", "10.77.2")?;
        lab.forward("1");
        Ok(lab)
    }

    /// A cable between a machine and the router, with an address `.2` and a way to everywhere.
    fn join(&self, machine: &Namespace, device: &str, net: &str) -> Result<(), String> {
        let (router, other) = (&self.router, format!("to-{device}"));
        let pair = format!("type veth peer name {other} netns {}", router.0);
        machine.try_ip(&format!("link add {device} {pair}"))?;
        router.try_ip(&format!("addr add {net}.1/24 dev {other}"))?;
        router.try_ip(&format!("link set {other} up"))?;
        machine.try_ip(&format!("addr add {net}.2/24 dev {device}"))?;
        machine.try_ip(&format!("link set {device} up"))?;
        machine.try_ip(&format!("route replace default via {net}.1"))
    }

    /// Does something on the serving machine.
    pub fn serving<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.serving.inside(work)
    }

    /// Does something on the mounting machine.
    pub fn mounting<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.mounting.inside(work)
    }

    /// Nothing gets through while the cut lives. Programs that wait end with it: it is to be dropped before they are.
    pub fn cut(&self) -> Cut<'_> {
        self.forward("0");
        Cut(self)
    }

    fn forward(&self, on: &str) {
        let set = || fs::write("/proc/sys/net/ipv4/ip_forward", on).unwrap();
        self.router.inside(set);
    }

    /// The mounting machine loses its address and gets another one on the same interface.
    pub fn change_address(&self) {
        self.mounting.ip("addr del 10.77.1.2/24 dev near");
        self.mounting.ip("addr add 10.77.1.77/24 dev near");
        self.mounting.ip("route replace default via 10.77.1.1");
    }

    /// The mounting machine loses its interface.
    pub fn remove_interface(&self) {
        self.mounting.ip("link delete near");
    }

    /// It gets another one, on another network.
    pub fn add_interface(&self) {
        self.join(&self.mounting, "other", "10.77.3").unwrap();
    }
}
