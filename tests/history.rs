//! Recorded histories of several mounts whose links are cut at random, checked against the promises.
//!
//! ```text
//! worker ── mount 0 ── relay ✂ ─┐
//! worker ── mount 1 ── relay ✂ ─┼─ server
//! worker ── mount 2 ── relay ✂ ─┘
//! ```
//!
//! Each round the workers ([`worker`]: processes of their own, so that nobody waits for anybody by accident) read, store
//! and sync a handful of pages, by calls and through mappings, while links are lost and found. Some are lost for longer
//! than the lease. Then all is synced and read once more, the file at the server as well, and the [`checker`] looks at
//! everything that was done.
//!
//! `MEMFS_HISTORY_ROUNDS` is how many rounds there are; `MEMFS_HISTORY_SEED` makes the same choices as a run that printed
//! it (the moments are not the same).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where anything fails"
)]

mod common;

#[path = "history/checker.rs"]
mod checker;
#[path = "history/worker.rs"]
mod worker;

use checker::{Event, Page, SERVER, What, complaints};
use common::dice::{Dice, seed, variable};
use common::relay::Relay;
use common::{Home, Mount, Serve};
use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PAGE_BYTES: u64 = 4096;
const FILES: u32 = 2;
/// Of each file.
const PAGES: u32 = 3;
const MOUNTS: u32 = 3;
const ROUNDS: u64 = 42;
/// One round in so many has a link that is cut for longer than the lease.
const LONG_EVERY: u64 = 14;
const LEASE: &str = "2s";
/// How long a worker may say nothing before its mount is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(120);

fn file_name(file: u32) -> String {
    format!("file-{file}")
}

/// The program on a mount, told so by its environment.
#[test]
#[ignore = "run by the other test"]
fn the_worker() {
    let (Some(folder), Some(mount)) = (
        env::var_os("MEMFS_HISTORY_FOLDER"),
        variable("MEMFS_HISTORY_MOUNT"),
    ) else {
        return;
    };
    worker::work(folder.as_ref(), mount as u32).unwrap();
}

/// A worker, as seen from here.
struct Hired {
    mount: u32,
    child: Child,
    lines: Receiver<String>,
}

impl Hired {
    fn start(mount: u32, folder: &Path) -> Hired {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "the_worker", "--ignored", "--nocapture"]);
        command.env("MEMFS_HISTORY_FOLDER", folder);
        command.env("MEMFS_HISTORY_MOUNT", mount.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            let said = stdout.lines().map_while(io::Result::ok);
            for line in said.filter(|line| line.starts_with("h ")) {
                let _ = send.send(line); // who fails does not listen any more
            }
        });
        let hired = Hired {
            mount,
            child,
            lines,
        };
        assert_eq!(hired.hear().len(), 0);
        hired
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    /// All that it did.
    fn hear(&self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|why| panic!("mount {}: {why}", self.mount));
            match worker::understand(self.mount, &line) {
                Some(event) => events.push(event),
                None => return events,
            }
        }
    }
}

impl Drop for Hired {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// Has all workers do the same, at the same time.
fn all(workers: &mut [Hired], what: &str) -> Vec<Event> {
    workers.iter_mut().for_each(|worker| worker.tell(what));
    workers.iter().flat_map(Hired::hear).collect()
}

/// Cuts a link, or not, for a while that begins sometime.
fn cut_sometimes(relay: &Relay, mut dice: Dice, long: bool) {
    if !long && dice.below(2) == 0 {
        return;
    }
    std::thread::sleep(Duration::from_millis(dice.below(30)));
    relay.cut(true);
    let millis = match long {
        true => 2200 + dice.below(1500),
        false => dice.below(250),
    };
    std::thread::sleep(Duration::from_millis(millis));
    relay.cut(false);
}

/// What the files at the server hold: the first word of each page.
fn served(folder: &Path) -> HashMap<Page, u64> {
    let mut values = HashMap::new();
    for file in 0..FILES {
        let bytes = fs::read(folder.join(file_name(file))).unwrap();
        assert_eq!(bytes.len() as u64, u64::from(PAGES) * PAGE_BYTES);
        for page in 0..PAGES {
            let at = page as usize * PAGE_BYTES as usize;
            let word: [u8; 8] = bytes[at..at + 8].try_into().unwrap();
            values.insert((file, page), u64::from_le_bytes(word));
        }
    }
    values
}

#[test]
fn what_was_synced_is_seen_whatever_becomes_of_the_links() {
    let seed = seed("MEMFS_HISTORY_SEED");
    let rounds = variable("MEMFS_HISTORY_ROUNDS").unwrap_or(ROUNDS);
    let home = Home::in_memory();
    let folder = home.folder("served");
    for file in 0..FILES {
        let empty = vec![0; PAGES as usize * PAGE_BYTES as usize];
        fs::write(folder.join(file_name(file)), empty).unwrap();
    }
    let serve = Serve::start_at(&home, &folder, "127.0.0.1:0", &["--lease", LEASE]);
    let relays: Vec<_> = (0..MOUNTS).map(|_| Relay::start(&serve.address)).collect();
    let mounts: Vec<_> = (0..MOUNTS)
        .map(|mount| {
            let interval = ["20ms", "1s", "1h"][mount as usize];
            let options = ["--push-interval", interval];
            let source = relays[mount as usize].source();
            Mount::with(&home, &source, &format!("mnt-{mount}"), &options)
        })
        .collect();
    let mut workers: Vec<_> = (0..MOUNTS)
        .zip(&mounts)
        .map(|(number, mount)| Hired::start(number, mount.point()))
        .collect();
    let mut values = served(&folder);
    for round in 0..rounds {
        let mut dice = Dice(seed.wrapping_add(round << 32));
        let long = (round % LONG_EVERY == LONG_EVERY / 2).then(|| dice.below(u64::from(MOUNTS)));
        let mut events = std::thread::scope(|scope| {
            for (number, relay) in (0..).zip(&relays) {
                let dice = Dice(dice.below(u64::MAX));
                scope.spawn(move || cut_sometimes(relay, dice, long == Some(number)));
            }
            all(&mut workers, &format!("round {}", dice.below(u64::MAX)))
        });
        events.extend(all(&mut workers, "sync"));
        events.extend(all(&mut workers, "read"));
        let after = served(&folder);
        let end = events.iter().map(|event| event.end).max().unwrap_or(0);
        events.extend(after.iter().map(|(&page, &value)| Event {
            mount: SERVER,
            what: What::Read(page, value),
            start: end + 1,
            end: end + 2,
        }));
        let mut wrong = complaints(&events, &values);
        // All have the same in the end.
        let last = events.len() - (after.len() * (2 * MOUNTS as usize + 1));
        for Event { mount, what, .. } in &events[last..] {
            if let What::Read(page, value) = what
                && after[page] != *value
            {
                let there = after[page];
                wrong.push(format!(
                    "{page:?}: {value:x} at mount {mount}, {there:x} at the server"
                ));
            }
        }
        if !wrong.is_empty() {
            events.sort_by_key(|event| event.start);
            let all: String = events.iter().map(|event| format!("{event:x?}\n")).collect();
            panic!("round {round} of seed {seed}:\n{}\n{all}", wrong.join("\n"));
        }
        values = after;
    }
    drop(workers);
    for mount in mounts {
        mount.unmount();
    }
}
