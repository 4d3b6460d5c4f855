//! Processes are killed at random moments while a program writes and syncs; then what was killed is started
//! again, and every byte is compared.
//!
//! ```text
//! writer: w(rite begins) ─▶ r(eturned) ─ … ─▶ s(ynced)        each told through a pipe, which outlives it
//!                    ✂ the mount's process, the server, the writer, or the helper, by SIGKILL
//! served folder, at once:   what was synced, or what was written over it later
//! mount, everything back:   what was written, or of the one write that did not return any part
//! served folder, unmounted: what the mount showed
//! ```
//!
//! Some lanes serve a disk of their own, and its power is cut as well: the server is killed, and what had not got
//! to the device is gone (`Disk::cut_power`).
//!
//! A server that lost a mount waits for its lease (10 s) before others change the same pages, so several lanes,
//! each with a server, a mount and a writer, go on side by side.
//!
//! `MEMFS_CRASH_ROUNDS` is how many rounds there are in all lanes together, `MEMFS_CRASH_SEED` makes the same
//! choices as a run that printed it (the moments are not the same to the microsecond).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where anything fails"
)]

mod common;

use common::dice::{Dice, seed, variable};
use common::disks::Disk;
use common::{Home, Mount, Serve, noise, processes_of, run, signal};
use rustix::process::Signal;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LANES: u64 = 8;
/// Those with a disk.
const DISKS: u64 = 3;
const ROUNDS: u64 = 50;
const FILES: usize = 4;
/// A file grows until it is so long, in bytes.
const LENGTH_MAX: u64 = 1 << 20;
/// How long the writer may say nothing before the mount is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(120);

fn name(file: usize) -> String {
    format!("file-{file}")
}

/// What was written; or all that there was at a moment when nobody wrote.
#[derive(Clone)]
struct Write {
    offset: usize,
    bytes: Vec<u8>,
    whole: bool,
}

/// What the writer told.
enum Event {
    Begun(usize, Write),
    /// What was begun last.
    Returned,
    Synced(usize),
    /// It ends, by an error.
    Failed(String),
}

/// What is known of a file.
#[derive(Clone, Default)]
struct Known {
    /// What was synced.
    sure: Vec<u8>,
    /// What was written since, oldest first.
    since: Vec<Write>,
}

impl Known {
    fn settle(&mut self) {
        if let Some(shown) = self.since.iter().rposition(|it| it.whole) {
            self.since.drain(..shown);
            self.sure.clear();
        }
        for write in self.since.drain(..) {
            let end = write.offset + write.bytes.len();
            if self.sure.len() < end {
                self.sure.resize(end, 0);
            }
            self.sure[write.offset..end].copy_from_slice(&write.bytes);
        }
    }

    /// After all events of a file: what was synced among the first `count` is sure.
    fn synced(mut self, file: usize, events: &[Event], count: usize) -> Known {
        for (index, event) in events.iter().enumerate() {
            match event {
                Event::Begun(at, write) if *at == file => self.since.push(write.clone()),
                Event::Synced(at) if *at == file && index < count => self.settle(),
                _ => {}
            }
        }
        self
    }

    /// After all events of a file: what returned is sure.
    fn returned(mut self, file: usize, events: &[Event]) -> Known {
        self.settle();
        for (event, next) in events
            .iter()
            .zip(events.iter().skip(1).map(Some).chain([None]))
        {
            if let Event::Begun(at, write) = event
                && *at == file
            {
                self.since.push(write.clone());
                if let Some(Event::Returned) = next {
                    self.settle();
                }
            }
        }
        self
    }

    /// What is wrong, unless each byte is the one that is sure, or one written since.
    fn complaint(&self, found: &[u8]) -> Option<String> {
        let ends = self.since.iter().map(|it| it.offset + it.bytes.len());
        let (shortest, len) = (self.sure.len(), found.len());
        let longest = ends.max().unwrap_or(0).max(shortest);
        if !(shortest..=longest).contains(&len) {
            return Some(format!("{len} bytes, not {shortest} to {longest}"));
        }
        let is_wrong = |&(at, byte): &(usize, &u8)| {
            let written = |it: &Write| {
                at.checked_sub(it.offset).and_then(|at| it.bytes.get(at)) == Some(byte)
            };
            self.sure.get(at).unwrap_or(&0) != byte && !self.since.iter().any(written)
        };
        let wrong = found.iter().enumerate().filter(is_wrong);
        let wrong: Vec<usize> = wrong.map(|(at, _)| at).collect();
        let (first, last) = (wrong.first()?, wrong.last()?);
        Some(format!(
            "{} bytes are wrong, from {first} to {last}",
            wrong.len()
        ))
    }

    #[track_caller]
    fn check(&self, found: &[u8], what: &str) {
        if let Some(complaint) = self.complaint(found) {
            panic!("{what}: {complaint}");
        }
    }
}

/// The program that writes: this very one, told so by its environment.
struct Writer {
    child: Child,
    lines: Receiver<String>,
    events: Vec<Event>,
}

impl Writer {
    fn start(home: &Home, mount: &Path, seed: u64) -> Writer {
        let _ = fs::remove_file(home.path("stop")); // there is none at first
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "the_writer", "--ignored", "--nocapture"]);
        command.env("MEMFS_CRASH_MOUNT", mount);
        command.env("MEMFS_CRASH_STOP", home.path("stop"));
        command.env("MEMFS_CRASH_SEED", seed.to_string());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(io::Result::ok) {
                let _ = send.send(line); // who fails does not listen any more
            }
        });
        let events = Vec::new();
        Writer {
            child,
            lines,
            events,
        }
    }

    /// Waits for what it tells next. Whether there was anything.
    fn hear(&mut self) -> bool {
        let line = match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return false,
            Err(error) => panic!("the writer says nothing: {error}"),
        };
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<usize>().unwrap();
        self.events.push(match words[..] {
            ["w", file, offset, len, seed] => {
                let write = Write {
                    offset: number(offset),
                    bytes: noise(number(len), seed.parse().unwrap()),
                    whole: false,
                };
                Event::Begun(number(file), write)
            }
            ["r"] => Event::Returned,
            ["s", file] => Event::Synced(number(file)),
            ["e", ..] => Event::Failed(line),
            _ => return true, // of the test runner
        });
        true
    }

    /// Waits until so many writes have returned, and then until so many syncs have.
    fn wait_for(&mut self, returned: u64, synced: u64) {
        let count = |events: &[Event], is_it: fn(&Event) -> bool| {
            events.iter().filter(|event| is_it(event)).count() as u64
        };
        let from = self.events.len();
        while count(&self.events[from..], |it| matches!(it, Event::Returned)) < returned
            || count(&self.events[from..], |it| matches!(it, Event::Synced(_))) < synced
        {
            assert!(self.hear(), "the writer ended: {:?}", self.error());
        }
    }

    /// Everything it had to tell, once it has ended.
    fn last_words(&mut self) {
        while self.hear() {}
        self.child.wait().unwrap();
    }

    fn error(&self) -> Option<&str> {
        self.events.iter().find_map(|event| match event {
            Event::Failed(error) => Some(error.as_str()),
            _ => None,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        if !std::thread::panicking() {
            // Else it may wait for a server that is gone, until the mount is unmounted.
            let _ = self.child.wait();
        }
    }
}

/// Writes to a mount and tells of it, until it is stopped or killed, or fails. Started by [`Writer`].
#[test]
#[ignore = "a part of another test"]
fn the_writer() {
    let (Some(mount), Some(stop)) = (
        env::var_os("MEMFS_CRASH_MOUNT"),
        env::var_os("MEMFS_CRASH_STOP"),
    ) else {
        return;
    };
    let dice = Dice(variable("MEMFS_CRASH_SEED").unwrap());
    println!(); // after what the test runner says
    if let Err(error) = write_and_tell(mount.as_ref(), stop.as_ref(), dice) {
        println!("e {error}");
    }
}

fn write_and_tell(mount: &Path, stop: &Path, mut dice: Dice) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut files = Vec::new();
    for file in 0..FILES {
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false);
        let opened = options.open(mount.join(name(file)))?;
        opened.sync_all()?;
        writeln!(out, "s {file}")?;
        files.push((opened.metadata()?.len(), opened));
    }
    while !stop.exists() {
        let file = dice.below(FILES as u64) as usize;
        let (end, opened) = &mut files[file];
        let len = 1 + dice.below(20_000);
        let offset = match *end < LENGTH_MAX && dice.below(2) == 0 {
            true => *end,
            false => dice.below(*end + 1),
        };
        let number = dice.below(u64::MAX);
        writeln!(out, "w {file} {offset} {len} {number}")?;
        opened.write_all_at(&noise(len as usize, number), offset)?;
        writeln!(out, "r")?;
        *end = (*end).max(offset + len);
        if dice.below(4) == 0 {
            opened.sync_data()?;
            writeln!(out, "s {file}")?;
        }
    }
    Ok(())
}

/// A server, a mount, a writer at a time.
struct Lane<'a> {
    home: &'a Home,
    served: PathBuf,
    disk: Option<&'a Disk>,
    dice: Dice,
    mount: Option<Mount<'a>>,
    serve: Option<Serve>,
    known: [Known; FILES],
}

impl<'a> Lane<'a> {
    fn start(home: &'a Home, disk: Option<&'a Disk>, seed: u64) -> Lane<'a> {
        let served = match disk {
            Some(disk) => {
                let served = home.folder("disk/served");
                // Else it may be gone with the power itself.
                rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
                served
            }
            None => home.folder("served"),
        };
        let serve = Serve::start(home, &served);
        let mut lane = Lane {
            home,
            served,
            disk,
            dice: Dice(seed),
            serve: Some(serve),
            mount: None,
            known: Default::default(),
        };
        lane.mount_it();
        lane
    }

    fn mount_it(&mut self) {
        let cache = self.home.path("cache").to_str().unwrap().to_owned();
        let interval = ["1s", "1h"][self.dice.below(2) as usize];
        let log = self.home.path("logs/mount").to_str().unwrap().to_owned();
        let options = [
            "--cache",
            &cache,
            "--push-interval",
            interval,
            "--log",
            &log,
        ];
        let source = self.serve.as_ref().unwrap().source();
        let mount = Mount::with(self.home, &source, "mnt", &options);
        let conflicts = &mount.status()["conflicts"];
        assert_eq!(conflicts.as_array().unwrap().len(), 0, "{conflicts}");
        self.mount = Some(mount);
    }

    fn mount(&self) -> &Mount<'a> {
        self.mount.as_ref().unwrap()
    }

    /// What is served, or what the mount shows.
    fn read(folder: &Path) -> Vec<Vec<u8>> {
        let read = |file| fs::read(folder.join(name(file)));
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Vec::new(),
            _ => panic!("{folder:?}: {error}"),
        };
        (0..FILES)
            .map(|file| read(file).unwrap_or_else(missing))
            .collect()
    }

    /// The process beside the mount's.
    fn helper(&self, mount: u32) -> u32 {
        let parent = format!("PPid:\t{mount}\n");
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.contains(&parent)
        };
        let mut found = processes_of(self.home.path("run").as_path());
        found.retain(is_it);
        assert_eq!(found.len(), 1, "which of {found:?} helps {mount}");
        found[0]
    }

    /// Kills one process amid writes, starts it again, compares.
    fn round(&mut self, name: &str) {
        let victims: &[_] = match self.disk {
            Some(_) => &["power", "power", "mount", "server"],
            None => &["mount", "server", "writer", "helper"],
        };
        let victim = victims[self.dice.below(4) as usize];
        let (returned, spin) = (self.dice.below(40), self.dice.below(5000));
        let what = format!("{name}: after {returned} writes and {spin} µs the {victim} was killed");
        let pid = self.mount().pid();
        let helper = self.helper(pid);
        let seed = self.dice.below(1 << 32);
        let mut writer = Writer::start(self.home, self.mount().point(), seed);
        writer.wait_for(returned, 0);
        let spinning = Instant::now();
        while spinning.elapsed() < Duration::from_micros(spin) {
            std::hint::spin_loop();
        }
        let heard = writer.events.len();
        match victim {
            "mount" => signal(pid, Signal::KILL),
            "server" => signal(self.serve.as_ref().unwrap().pid(), Signal::KILL),
            "power" => {
                self.serve.as_mut().unwrap().die();
                self.disk.unwrap().cut_power();
            }
            "writer" => signal(writer.child.id(), Signal::KILL),
            _ => signal(helper, Signal::KILL),
        }
        let served = Lane::read(&self.served);
        match victim {
            "mount" => {
                writer.last_words();
                let point = self.mount.take().unwrap().leave();
                run(self.home.memfs(["umount", "--force"]).arg(point));
                self.mount_it();
            }
            "writer" => writer.last_words(),
            _ => {
                if let "server" | "power" = victim {
                    self.serve_again();
                }
                writer.wait_for(1, 1);
                fs::write(self.home.path("stop"), "").unwrap();
                writer.last_words();
            }
        }
        if victim != "mount" {
            assert_eq!(writer.error(), None, "{what}");
        }
        self.compare(&what, &writer.events, heard, &served);
        if victim == "helper" || self.dice.below(4) == 0 {
            self.unmount(&what);
            self.mount_it();
        }
    }

    fn serve_again(&mut self) {
        let serve = self.serve.take().unwrap();
        let address = serve.address.clone();
        serve.kill();
        self.serve = Some(Serve::start_at(self.home, &self.served, &address, &[]));
    }

    fn compare(&mut self, what: &str, events: &[Event], heard: usize, served: &[Vec<u8>]) {
        let shown = Lane::read(self.mount().point());
        for (file, known) in self.known.iter_mut().enumerate() {
            let synced = known.clone().synced(file, events, heard);
            synced.check(&served[file], &format!("{what}: served file {file}"));
            let returned = known.clone().returned(file, events);
            returned.check(&shown[file], &format!("{what}: mounted file {file}"));
            *known = known.clone().synced(file, events, events.len());
            known.since.push(Write {
                offset: 0,
                bytes: shown[file].clone(),
                whole: true,
            });
        }
    }

    /// Everything is pushed then.
    fn unmount(&mut self, what: &str) {
        self.mount.take().unwrap().unmount();
        let served = Lane::read(&self.served);
        for (file, known) in self.known.iter_mut().enumerate() {
            known.settle();
            known.check(&served[file], &format!("{what}, unmounted: file {file}"));
        }
    }
}

#[test]
fn nothing_is_lost_when_processes_are_killed() {
    let seed = seed("MEMFS_CRASH_SEED");
    let rounds = variable("MEMFS_CRASH_ROUNDS").unwrap_or(ROUNDS);
    std::thread::scope(|scope| {
        for lane in 0..LANES.min(rounds) {
            scope.spawn(move || {
                let home = Home::in_memory();
                let test = "nothing_is_lost_when_processes_are_killed, power";
                let disk = (lane < DISKS).then(|| Disk::with_journal(test, &home));
                let disk = disk.flatten();
                let mut it = Lane::start(&home, disk.as_ref(), seed.wrapping_add(lane << 32));
                for round in (lane..rounds).step_by(LANES as usize) {
                    it.round(&format!("lane {lane}, round {round}"));
                }
                it.unmount(&format!("lane {lane}, in the end"));
            });
        }
    });
}

/// What the comparison lets pass and what not.
#[test]
fn what_is_lost_is_caught() {
    let write = |offset, bytes: &[u8]| Write {
        offset,
        bytes: bytes.to_vec(),
        whole: false,
    };
    let events = [
        Event::Begun(0, write(0, b"aaaa")),
        Event::Returned,
        Event::Synced(0),
        Event::Begun(0, write(2, b"bbbb")),
        Event::Returned,
        Event::Begun(0, write(4, b"cccc")),
    ];
    let is_fine = |known: &Known, found: &[u8]| known.complaint(found).is_none();
    let synced = Known::default().synced(0, &events, 3);
    for found in [&b"aaaa"[..], b"aabbbb", b"aabbcccc", b"aaba", b"aaaa\0\0cc"] {
        assert!(is_fine(&synced, found), "{found:?}");
    }
    for found in [&b"aaa"[..], b"aaac", b"\0aaa", b"aabbccccc", b"bbbb"] {
        assert!(!is_fine(&synced, found), "{found:?}");
    }
    let returned = Known::default().returned(0, &events);
    assert!(is_fine(&returned, b"aabbbb") && is_fine(&returned, b"aabbcbc"));
    assert!(!is_fine(&returned, b"aaaa") && !is_fine(&returned, b"aababb"));
    let untold = Known::default().synced(0, &events, 2);
    assert!(is_fine(&untold, b"") && is_fine(&untold, b"a\0\0a"));
}
