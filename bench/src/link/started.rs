//! A link in a process of its own, as the runner uses it; or loopback, which is one as well.

use super::{ADDRESS_B, Options};
use crate::process::{Group, PATIENCE, run, wait_for};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

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
    options: Option<Options>,
    started: Option<Started>,
}

struct Started {
    child: Child,
    /// So that its processor time is known as ours.
    _group: Group,
    /// Namespaces of client and server.
    spaces: [String; 2],
}

impl Link {
    /// Starts the link of this name.
    ///
    /// # Errors
    /// One line.
    pub fn start(name: &str) -> Result<Link, String> {
        if name == "loopback" {
            return Ok(Link {
                name: name.into(),
                options: None,
                started: None,
            });
        }
        let options = Options::from_name(name)?;
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let group = Group::new("link");
        let mut command = group.command(&[], &program);
        command.args(["link", "--until-eof"]).args(options.args());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("the link: {e}"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .map_err(|e| e.to_string())?;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["memfs-bench:", "link", a, _, b, _] = words[..] else {
            let output = child.wait_with_output().map_err(|e| e.to_string())?;
            let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!("link {name}: {complaint}"));
        };
        let spaces = [a.to_owned(), b.to_owned()];
        Ok(Link {
            name: name.into(),
            options: Some(options),
            started: Some(Started {
                child,
                _group: group,
                spaces,
            }),
        })
    }

    /// As it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is like; `None` for loopback.
    pub fn options(&self) -> Option<&Options> {
        self.options.as_ref()
    }

    /// What a command begins with to run on one side.
    pub fn prefix(&self, side: Side) -> Vec<String> {
        match &self.started {
            Some(Started { spaces, .. }) => {
                let space = &spaces[side as usize];
                vec!["nsenter".into(), format!("--net=/run/netns/{space}")]
            }
            None => Vec::new(),
        }
    }

    /// The server's address.
    pub fn server(&self) -> &'static str {
        match self.started {
            Some(_) => ADDRESS_B,
            None => "127.0.0.1",
        }
    }

    /// A port that is free on the server. Namespaces are empty; on loopback it is free right now.
    ///
    /// # Errors
    /// Where there is none.
    pub fn free_port(&self) -> Result<u16, String> {
        let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        Ok(listener.map_err(|e| e.to_string())?.port())
    }

    /// Bytes that have gone over the link to the client; on loopback both ways and of everybody.
    ///
    /// # Errors
    /// One line.
    pub fn bytes_received(&self) -> Result<u64, String> {
        let mut words = self.prefix(Side::Client);
        words.extend(["cat".into(), "/proc/net/dev".into()]);
        let table = run(Command::new(&words[0]).args(&words[1..]))?;
        let device = match self.started {
            Some(_) => super::DEVICE,
            None => "lo",
        };
        let line = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(device));
        let bytes = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        bytes.ok_or_else(|| format!("/proc/net/dev has no {device}"))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(Started { child, .. }) = &mut self.started {
            drop(child.stdin.take()); // it ends then
            let ended = wait_for("the link's end", PATIENCE, || {
                child.try_wait().map_err(|e| e.to_string())
            });
            if ended.is_err() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
