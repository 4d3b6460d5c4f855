//! Twenty mounts of one server under a mixed load that goes on and on.
//!
//! ```text
//!            ┌ mount 0 ── its worker: writes, maps, renames, … in `own-0`, checked against a model of it
//!   server ──┤    …                   replaces `shared/0`, which the others read
//!            └ mount 19               counts in `shared/count`, under a lock
//! ```
//!
//! All the while memory and descriptors of each process are sampled: from the second quarter of the run, when what is
//! bounded is full, to the last one they must not grow. Some mounts are killed and started again now and then; these
//! are not sampled. In the end what is served is compared with all models.
//!
//! `MEMFS_SOAK_SECONDS` is how long; without it each worker does a fixed number of things. `MEMFS_SOAK_SEED` has each
//! worker make the same choices as in the run that printed it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where anything fails"
)]

mod common;

use common::dice::{Dice, seed, variable};
use common::mapped::Mapped;
use common::{Home, Mount, Serve, noise, run, signal};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MOUNTS: usize = 20;
/// The last so many are killed now and then.
const MORTAL: usize = 4;
/// Things each worker does where no time is given.
const DEEDS: u64 = 100;
const FILES_MAX: usize = 24;
const LENGTH_MAX: u64 = 128 << 10;
const SAMPLES: u64 = 200;
/// What a process may differ by from one part of a run to another, in memory besides a twentieth of it: what it has
/// depends on what is under way.
const SLACK: Size = Size {
    memory: 2 << 10,
    descriptors: 8,
};
/// The same where all that is bounded is not full yet in the second quarter: a mount has two descriptors of the copy
/// of each file that it knows.
const SLACK_SHORT: Size = Size {
    memory: 8 << 10,
    descriptors: 2 * (FILES_MAX + MOUNTS) as u64,
};
/// A run is short that takes less than this.
const LONG: Duration = Duration::from_secs(600);

/// What all workers share.
struct World<'a> {
    home: &'a Home,
    source: String,
    until: Option<Instant>,
    /// Of each mount: the newest `shared/N` that all must see.
    published: [AtomicU64; MOUNTS],
    counted: AtomicU64,
    deeds: AtomicU64,
    failed: AtomicBool,
}

struct Worker<'a> {
    world: &'a World<'a>,
    no: usize,
    dice: Dice,
    mount: Option<Mount<'a>>,
    /// What `own-N` holds.
    files: Model,
}

/// Files by name.
type Model = BTreeMap<String, Vec<u8>>;

/// What `shared/N` holds: a number, and what follows from it.
fn publication(number: u64) -> Vec<u8> {
    let len = 1000 + number % 10_000;
    [&number.to_le_bytes()[..], &noise(len as usize, number)].concat()
}

impl<'a> Worker<'a> {
    fn start(world: &'a World<'a>, no: usize, dice: Dice) -> Worker<'a> {
        let mut worker = Worker {
            world,
            no,
            dice,
            mount: None,
            files: BTreeMap::new(),
        };
        worker.mount_it();
        worker
    }

    fn mount_it(&mut self) {
        let name = format!("mount-{}", self.no);
        self.mount = Some(Mount::with(self.world.home, &self.world.source, &name, &[]));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.as_ref().unwrap().path(name)
    }

    fn own(&self, name: &str) -> PathBuf {
        self.path(&format!("own-{}", self.no)).join(name)
    }

    fn work(&mut self) {
        let world = self.world;
        let mut done = 0;
        let is_over = |done| match world.until {
            Some(until) => Instant::now() >= until,
            None => done >= DEEDS,
        };
        while !is_over(done) && !world.failed.load(Ordering::Relaxed) {
            self.deed();
            done += 1;
            world.deeds.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end(&mut self) -> Model {
        self.check_all();
        self.mount.take().unwrap().unmount();
        std::mem::take(&mut self.files)
    }

    fn deed(&mut self) {
        match self.dice.below(100) {
            0..20 => self.replace(),
            20..35 => self.patch(),
            35..45 => self.patch_mapped(),
            45..65 => self.check_one(),
            65..70 => self.cut(),
            70..75 => self.rename(),
            75..80 => self.remove(),
            80..83 => self.check_names(),
            83..85 => self.folder(),
            85..90 => self.publish(),
            90..96 => self.peek(),
            96..99 => self.count(),
            _ => self.start_again(),
        }
    }

    /// One of its files.
    fn pick(&mut self) -> Option<String> {
        let count = self.files.len().max(1) as u64;
        let at = self.dice.below(count) as usize;
        self.files.keys().nth(at).cloned()
    }

    fn new_name(&mut self) -> String {
        format!("file-{}", self.dice.below(FILES_MAX as u64))
    }

    fn bytes(&mut self, len_max: u64) -> Vec<u8> {
        let (len, seed) = (self.dice.below(len_max), self.dice.below(1 << 48));
        noise(len as usize, seed)
    }

    fn replace(&mut self) {
        let (name, bytes) = (self.new_name(), self.bytes(LENGTH_MAX));
        fs::write(self.own(&name), &bytes).unwrap();
        self.files.insert(name, bytes);
    }

    fn patch(&mut self) {
        let Some(name) = self.pick() else { return };
        let bytes = self.bytes(LENGTH_MAX / 8);
        let end = self.files[&name].len() as u64;
        let at = self.dice.below(end + LENGTH_MAX / 16).min(LENGTH_MAX) as usize;
        let file = File::options().write(true).open(self.own(&name)).unwrap();
        file.write_all_at(&bytes, at as u64).unwrap();
        if self.dice.below(3) == 0 {
            file.sync_all().unwrap();
        }
        let known = self.files.get_mut(&name).unwrap();
        if !bytes.is_empty() {
            let end = (at + bytes.len()).max(known.len());
            known.resize(end, 0);
            known[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn patch_mapped(&mut self) {
        let Some(name) = self.pick() else { return };
        let len = self.files[&name].len();
        if len == 0 {
            return;
        }
        let at = self.dice.below(len as u64) as usize;
        let bytes = self.bytes(1 + (len - at) as u64);
        let mut file = File::options();
        let file = file.read(true).write(true).open(self.own(&name)).unwrap();
        let mapped = Mapped::to_write(&file);
        mapped.store(at, &bytes);
        let known = self.files.get_mut(&name).unwrap();
        known[at..at + bytes.len()].copy_from_slice(&bytes);
        assert!(mapped.read() == *known, "{name} of {}, mapped", self.no);
        mapped.sync();
    }

    fn check_one(&mut self) {
        let Some(name) = self.pick() else { return };
        let known = &self.files[&name];
        let file = File::open(self.own(&name)).unwrap();
        if !known.is_empty() && self.dice.below(2) == 0 {
            assert!(
                Mapped::new(&file).read() == *known,
                "{name} of {}, mapped",
                self.no
            );
        } else {
            let bytes = fs::read(self.own(&name)).unwrap();
            assert!(bytes == *known, "{name} of {}", self.no);
        }
    }

    fn cut(&mut self) {
        let Some(name) = self.pick() else { return };
        let len = self.dice.below(LENGTH_MAX);
        let file = File::options().write(true).open(self.own(&name)).unwrap();
        file.set_len(len).unwrap();
        self.files.get_mut(&name).unwrap().resize(len as usize, 0);
    }

    fn rename(&mut self) {
        let Some(from) = self.pick() else { return };
        let to = self.new_name();
        fs::rename(self.own(&from), self.own(&to)).unwrap();
        let bytes = self.files.remove(&from).unwrap();
        self.files.insert(to, bytes);
    }

    fn remove(&mut self) {
        let Some(name) = self.pick() else { return };
        fs::remove_file(self.own(&name)).unwrap();
        self.files.remove(&name);
    }

    fn check_names(&mut self) {
        let mut found = names(&self.own(""));
        found.sort();
        assert!(
            found.iter().eq(self.files.keys()),
            "{found:?} at {}",
            self.no
        );
    }

    /// A folder comes and goes.
    fn folder(&mut self) {
        let folder = self.path(&format!("folder-{}", self.no));
        fs::create_dir(&folder).unwrap();
        for file in 0..self.dice.below(10) {
            fs::write(folder.join(file.to_string()), "bytes").unwrap();
        }
        fs::remove_dir_all(&folder).unwrap();
        assert!(!folder.exists());
    }

    fn publish(&mut self) {
        let newest = &self.world.published[self.no];
        let number = newest.load(Ordering::Acquire) + 1;
        let new = self.path(&format!("shared/new-{}", self.no));
        let file = File::create(&new).unwrap();
        file.write_all_at(&publication(number), 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        fs::rename(&new, self.path(&format!("shared/{}", self.no))).unwrap();
        newest.store(number, Ordering::Release);
    }

    /// What another one has published is seen by now.
    fn peek(&mut self) {
        let other = self.dice.below(MOUNTS as u64) as usize;
        let least = self.world.published[other].load(Ordering::Acquire);
        if least == 0 {
            return;
        }
        let path = self.path(&format!("shared/{other}"));
        let bytes = loop {
            match fs::read(&path) {
                // Replaced twice while it was being opened, which the kernel tries twice.
                Err(error) if error.kind() == std::io::ErrorKind::StaleNetworkFileHandle => {}
                read => break read.unwrap(),
            }
        };
        let number = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        assert!(
            number >= least,
            "{} sees {number} of {other}, {least} is there",
            self.no
        );
        assert!(
            bytes == publication(number),
            "{} sees a mixture of {other}",
            self.no
        );
    }

    fn count(&mut self) {
        let mut file = File::options();
        let file = file.read(true).write(true).open(self.path("shared/count"));
        let file = file.unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let mut count = [0; 8];
        file.read_exact_at(&mut count, 0).unwrap();
        let count = u64::from_le_bytes(count) + 1;
        file.write_all_at(&count.to_le_bytes(), 0).unwrap();
        flock(&file, FlockOperation::Unlock).unwrap();
        self.world.counted.fetch_add(1, Ordering::Relaxed);
    }

    /// By death or orderly.
    fn start_again(&mut self) {
        if self.no < MOUNTS - MORTAL {
            return;
        }
        let mount = self.mount.take().unwrap();
        if self.dice.below(2) == 0 {
            mount.unmount();
        } else {
            signal(mount.pid(), Signal::KILL);
            let point = mount.leave();
            run(self.world.home.memfs(["umount", "--force"]).arg(point));
        }
        self.mount_it();
        self.check_all();
    }

    fn check_all(&mut self) {
        self.check_names();
        for (name, known) in &self.files {
            assert!(
                fs::read(self.own(name)).unwrap() == *known,
                "{name} of {}",
                self.no
            );
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
    entries.map(|entry| name(entry).unwrap()).collect()
}

/// Has all others end where one fails.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Memory of its own in KiB, and descriptors.
#[derive(Clone, Copy, Default, Debug)]
struct Size {
    memory: u64,
    descriptors: u64,
}

impl Size {
    fn of(pid: u32) -> Size {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = memory.unwrap().trim_end_matches("kB").trim();
        Size {
            memory: memory.parse().unwrap(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64,
        }
    }

    /// What half of the samples are below.
    fn median(samples: &[Size]) -> Size {
        let middle = |of: fn(&Size) -> u64| {
            let mut values: Vec<u64> = samples.iter().map(of).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        Size {
            memory: middle(|size| size.memory),
            descriptors: middle(|size| size.descriptors),
        }
    }

    fn has_grown_since(self, before: Size, slack: Size) -> bool {
        self.memory > before.memory + before.memory / 20 + slack.memory
            || self.descriptors > before.descriptors + slack.descriptors
    }
}

/// The size of each process at each sample.
struct Samples(Vec<(String, u32, Vec<Size>)>);

impl Samples {
    fn take(&mut self) {
        for (_, pid, sizes) in &mut self.0 {
            sizes.push(Size::of(*pid));
        }
    }

    /// Tells how large each process was in each quarter of the run, then compares the second with the last.
    fn judge(&self, slack: Size) {
        let mut grown = Vec::new();
        for (name, _, sizes) in &self.0 {
            let part = |at: usize| &sizes[sizes.len() * at / 4..sizes.len() * (at + 1) / 4];
            let quarters = [0, 1, 2, 3].map(|at| Size::median(part(at)));
            let memory = quarters.map(|size| size.memory);
            let descriptors = quarters.map(|size| size.descriptors);
            let line = format!("{name}: {memory:?} KiB, {descriptors:?} descriptors");
            let _ = writeln!(std::io::stderr(), "{line}");
            if quarters[3].has_grown_since(quarters[1], slack) {
                grown.push(format!("{line}\n{sizes:?}"));
            }
        }
        assert!(grown.is_empty(), "grown:\n{}", grown.join("\n"));
    }
}

#[test]
fn twenty_mounts_under_mixed_load() {
    let seed = seed("MEMFS_SOAK_SEED");
    let time = variable("MEMFS_SOAK_SECONDS").map(Duration::from_secs);
    let home = Home::in_memory();
    let served = home.folder("served");
    fs::create_dir(served.join("shared")).unwrap();
    fs::write(served.join("shared/count"), 0u64.to_le_bytes()).unwrap();
    for no in 0..MOUNTS {
        fs::create_dir(served.join(format!("own-{no}"))).unwrap();
    }
    let serve = Serve::start(&home, &served);
    let world = World {
        home: &home,
        source: serve.source(),
        until: time.map(|time| Instant::now() + time),
        published: Default::default(),
        counted: AtomicU64::new(0),
        deeds: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    };
    let models = load(&world, seed, time, &serve);
    let count = fs::read(served.join("shared/count")).unwrap();
    let counted = world.counted.into_inner();
    assert_eq!(count, counted.to_le_bytes(), "{counted} were counted");
    for (no, files) in models.iter().enumerate() {
        let own = served.join(format!("own-{no}"));
        assert_eq!(names(&own).len(), files.len(), "own-{no}");
        for (name, known) in files {
            assert!(
                fs::read(own.join(name)).unwrap() == *known,
                "{name} of {no}, served"
            );
        }
    }
    let logs = home.logs();
    assert!(!logs.contains("panicked"), "{logs}");
}

fn load<'a>(world: &'a World<'a>, seed: u64, time: Option<Duration>, serve: &Serve) -> Vec<Model> {
    let dice = |no: usize| Dice(seed.wrapping_add((no as u64) << 32));
    let workers = (0..MOUNTS).map(|no| Worker::start(world, no, dice(no)));
    let workers: Vec<Worker<'_>> = workers.collect();
    let pid = |worker: &Worker<'_>| worker.mount.as_ref().unwrap().pid();
    let mounts = workers[..MOUNTS - MORTAL].iter();
    let mounts = mounts.map(|worker| (format!("mount {}", worker.no), pid(worker), Vec::new()));
    let server = ("server".to_owned(), serve.pid(), Vec::new());
    let mut samples = Samples(std::iter::once(server).chain(mounts).collect());
    let begin = Instant::now();
    let all = DEEDS * MOUNTS as u64;
    let share = || match time {
        Some(time) => begin.elapsed().as_secs_f64() / time.as_secs_f64(),
        None => world.deeds.load(Ordering::Relaxed) as f64 / all as f64,
    };
    let workers: Vec<Worker<'_>> = std::thread::scope(|scope| {
        let _alarm = Alarm(&world.failed);
        let work = |mut worker: Worker<'a>| {
            let _alarm = Alarm(&world.failed);
            worker.work();
            worker
        };
        let running = workers.into_iter().map(|it| scope.spawn(move || work(it)));
        let running: Vec<_> = running.collect();
        for sample in 1..SAMPLES {
            while share() < sample as f64 / SAMPLES as f64 && !world.failed.load(Ordering::Relaxed)
            {
                std::thread::sleep(Duration::from_millis(20)); // between two looks
            }
            if !world.failed.load(Ordering::Relaxed) {
                samples.take();
            }
        }
        let ended = running.into_iter().map(|worker| worker.join().unwrap());
        ended.collect()
    });
    samples.judge(match time {
        Some(time) if time >= LONG => SLACK,
        _ => SLACK_SHORT,
    });
    workers.into_iter().map(|mut worker| worker.end()).collect()
}
