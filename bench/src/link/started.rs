//! A link in a process of its own, as the runner uses it; or a loopback, which is one as well.

use super::namespace::{self, Namespace};
use super::{ADDRESS_B, Options};
use crate::process::{Group, run, wait_for_the_end};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Which end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the mount is.
    Client,
    /// Where the files are.
    Server,
}

/// A link between two sides of this machine, gone when it is dropped.
pub struct Link {
    name: String,
    kind: Kind,
}

enum Kind {
    /// Both sides in one namespace, so that nobody else's packets are counted.
    Loopback(Namespace),
    Wire {
        options: Options,
        child: Child,
        /// So that its processor time is known as ours.
        _group: Group,
        /// Namespaces of client and server.
        spaces: [String; 2],
    },
}

impl Link {
    /// Starts the link of this name.
    ///
    /// # Errors
    /// One line.
    pub fn start(name: &str) -> Result<Link, String> {
        namespace::remove_left_behind();
        let kind = match name {
            "loopback" => Kind::Loopback(Namespace::new("lo")?),
            _ => Kind::wire(name)?,
        };
        let name = name.into();
        Ok(Link { name, kind })
    }

    /// As it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The round-trip time that is asked of it.
    pub fn rtt(&self) -> Duration {
        match &self.kind {
            Kind::Loopback(_) => Duration::ZERO,
            Kind::Wire { options, .. } => options.rtt,
        }
    }

    /// Bytes in a second that fit through; `None` where there is no limit.
    pub fn line(&self) -> Option<f64> {
        match &self.kind {
            Kind::Loopback(_) => None,
            Kind::Wire { options, .. } => options.rate.map(|rate| rate as f64 / 8.0),
        }
    }

    /// What a command begins with to run on one side.
    pub fn prefix(&self, side: Side) -> Vec<String> {
        let space = match &self.kind {
            Kind::Loopback(space) => space.name(),
            Kind::Wire { spaces, .. } => &spaces[side as usize],
        };
        vec!["nsenter".into(), format!("--net=/run/netns/{space}")]
    }

    /// The server's address.
    pub fn server(&self) -> &'static str {
        match self.kind {
            Kind::Loopback(_) => "127.0.0.1",
            Kind::Wire { .. } => ADDRESS_B,
        }
    }

    /// Bytes that have gone over the link to the client; on loopback both ways.
    ///
    /// # Errors
    /// One line.
    pub fn bytes_received(&self) -> Result<u64, String> {
        let mut words = self.prefix(Side::Client);
        words.extend(["cat".into(), "/proc/net/dev".into()]);
        let table = run(Command::new(&words[0]).args(&words[1..]))?;
        let device = match self.kind {
            Kind::Wire { .. } => super::DEVICE,
            Kind::Loopback(_) => "lo",
        };
        let line = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(device));
        let bytes = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        bytes.ok_or_else(|| format!("/proc/net/dev has no {device}"))
    }
}

impl Kind {
    fn wire(name: &str) -> Result<Kind, String> {
        let options = Options::from_name(name)?;
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let group = Group::new("link");
        let mut command = group.command(&[], &program);
        command.args(["link", "--until-eof"]).args(options.args());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let command = command.stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("the link: {e}"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let read = BufReader::new(stdout).read_line(&mut line);
            read.map_err(|e| e.to_string())?;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["memfs-bench:", "link", a, _, b, _] = words[..] else {
            let output = child.wait_with_output().map_err(|e| e.to_string())?;
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!("link {name}: {complaint}"));
        };
        Ok(Kind::Wire {
            options,
            child,
            _group: group,
            spaces: [a.to_owned(), b.to_owned()],
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Kind::Wire { child, .. } = &mut self.kind {
            drop(child.stdin.take()); // it ends then
            let ended = wait_for_the_end("the link's end", || {
                child.try_wait().map_err(|e| e.to_string())
            });
            if ended.is_err() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
