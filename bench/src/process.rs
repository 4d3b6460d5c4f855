//! Other programs: run to their end, run beside this one, and all that they start kept together.
//!
//! A [`Group`] is a control group (cgroup v2): it tells the processor time of a program and of all that it
//! started, however they hide, and kills them all. Nothing here waits for ever: a program that does
//! not answer is an outcome to be reported.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Weight of this process and all that it starts, beside 1024 of all others together.
const SHARES: &str = "65536";
/// Of each second, what threads that go before all ordinary ones (a link's) may take.
const LINK_MICROS: &str = "900000";
/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// What a program that was told to end gets.
pub const PATIENCE: Duration = Duration::from_secs(10);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM let every wait fail, so that all is taken down in order.
///
/// # Errors
/// Where signals cannot be caught.
pub fn catch_interrupts() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (ready, caught) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let streams = signal(SignalKind::interrupt())
                .and_then(|interrupt| Ok((interrupt, signal(SignalKind::terminate())?)));
            let (mut interrupt, mut terminate) = match streams {
                Ok(streams) => streams,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            INTERRUPTED.store(true, Ordering::Relaxed);
            // The handlers stay: a second signal changes nothing.
            std::future::pending::<()>().await;
        });
    });
    caught.recv().unwrap_or(Ok(()))
}

/// Whether it is time to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// As [`wait_for`] with [`PATIENCE`], and also after an interrupt: for what is taken down then.
///
/// # Errors
/// One line: too late.
pub fn wait_for_the_end<T>(
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let end = Instant::now() + PATIENCE;
    loop {
        match look()? {
            Some(found) => return Ok(found),
            None if Instant::now() > end => return Err(format!("{what}: too late")),
            None => sleep(LOOK_EVERY),
        }
    }
}

/// Waits until something is there; the error says for what, and why not.
///
/// # Errors
/// One line: too late, or interrupted.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if interrupted() {
            return Err("interrupted".into());
        }
        if Instant::now() > end {
            return Err(format!("{what}: nothing within {} s", patience.as_secs()));
        }
        sleep(LOOK_EVERY);
    }
}

/// Runs a program to its end. What it printed on stdout, if it went well.
///
/// # Errors
/// One line with what it complained about.
pub fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{name}: {}: {}",
        output.status,
        last_line(&complaint)
    ))
}

/// Runs a program to its end, or for `patience`. Its output goes to a file, because what it leaves
/// running behind it (a daemon) may hold a pipe open.
///
/// # Errors
/// One line with what it complained about.
pub fn run_within(command: &mut Command, log: &Path, patience: Duration) -> Result<String, String> {
    let mut child = start(command, log)?;
    let outcome = wait_for(&name(command), patience, || {
        child.try_wait().map_err(|e| e.to_string())
    });
    match outcome {
        Ok(status) => finish(command, status, log),
        Err(error) => {
            // One that waits for the kernel ends later, when its mount is gone.
            let _ = child.kill();
            std::thread::spawn(move || child.wait());
            Err(error)
        }
    }
}

/// Starts a program whose output goes to a file.
///
/// # Errors
/// One line.
pub fn start(command: &mut Command, log: &Path) -> Result<Child, String> {
    let name = name(command);
    let output = File::create(log).and_then(|file| Ok((file.try_clone()?, file)));
    let (stdout, stderr) = output.map_err(|e| format!("{}: {e}", log.display()))?;
    let command = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    command.spawn().map_err(|e| format!("{name}: {e}"))
}

fn finish(command: &Command, status: ExitStatus, log: &Path) -> Result<String, String> {
    let text = fs::read_to_string(log).map_err(|e| format!("{}: {e}", log.display()))?;
    match status.success() {
        true => Ok(text),
        false => Err(format!("{}: {status}: {}", name(command), last_line(&text))),
    }
}

/// The program that a command is about, past those that only prepare the way for it.
fn name(command: &Command) -> String {
    let mut words = std::iter::once(command.get_program()).chain(command.get_args());
    let found = words.find(|word| {
        let word = word.to_string_lossy();
        !word.starts_with('-')
            && !["nsenter", "sh", ENTER].contains(&word.as_ref())
            && !word.ends_with("cgroup.procs")
    });
    found
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

/// The last line that says something.
pub fn last_line(text: &str) -> &str {
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("")
        .trim()
}

/// For `sh`: moves itself to a group, then becomes the program.
const ENTER: &str = "echo 0 >\"$0\" && exec \"$@\"";

/// Programs that are counted and ended together.
pub struct Group {
    /// `None` where there is no cgroup v2: nothing is counted then.
    folder: Option<PathBuf>,
}

impl Group {
    /// An empty one.
    pub fn new(role: &str) -> Group {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = ours().map(|ours| ours.join(format!("{number}-{role}")));
        Group {
            folder: folder.filter(|folder| fs::create_dir(folder).is_ok()),
        }
    }

    /// Puts `program` into this group, as the arguments of `prefix` (which may be empty).
    pub fn command(&self, prefix: &[String], program: &Path) -> Command {
        let mut words: Vec<String> = prefix.to_vec();
        if let Some(folder) = &self.folder {
            let members = folder.join("cgroup.procs").to_string_lossy().into_owned();
            words.extend(["sh".into(), "-c".into(), ENTER.into(), members]);
        }
        match words.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// Processor seconds that its programs have taken so far.
    pub fn seconds(&self) -> Option<f64> {
        seconds_of(self.folder.as_ref()?)
    }

    /// Bytes of memory of their own that its programs have now (`RssAnon`): what they have mapped of files, a cache
    /// for example, is the system's to take away.
    pub fn memory(&self) -> Option<u64> {
        let own = self.members()?.into_iter().filter_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let anonymous = status
                .lines()
                .find_map(|line| line.strip_prefix("RssAnon:"))?;
            let kib: u64 = anonymous.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            Some(kib << 10)
        });
        Some(own.sum())
    }

    /// Ends all of them at once; those that wait for a mount have to be freed first.
    pub fn kill(&self) {
        if let Some(folder) = &self.folder {
            // It may be gone.
            let _ = fs::write(folder.join("cgroup.kill"), "1");
            let _ = wait_for_the_end("killed programs", || {
                Ok(self
                    .members()
                    .is_none_or(|pids| pids.is_empty())
                    .then_some(()))
            });
        }
    }

    fn members(&self) -> Option<Vec<u32>> {
        let text = fs::read_to_string(self.folder.as_ref()?.join("cgroup.procs")).ok()?;
        Some(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        if let Some(folder) = &self.folder {
            remove_group(folder);
        }
    }
}

/// How busy the machine is beside what is measured.
pub struct Elsewhere {
    busy: f64,
    all: f64,
}

impl Elsewhere {
    /// Begins to look; `None` where it cannot be told.
    pub fn begin() -> Option<Elsewhere> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<f64> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        // user, nice, system, idle, iowait, irq, softirq, steal
        let all: f64 = ticks.get(..8)?.iter().sum();
        let idle = ticks[3] + ticks[4];
        let hertz = rustix::param::clock_ticks_per_second() as f64;
        let ours = seconds_of(&ours()?)?;
        Some(Elsewhere {
            busy: (all - idle) / hertz - ours,
            all: all / hertz,
        })
    }

    /// The share of all processors that other programs took since then, in percent.
    pub fn end(&self) -> Option<f64> {
        let now = Elsewhere::begin()?;
        let share = 100.0 * (now.busy - self.busy) / (now.all - self.all);
        share.is_finite().then_some(share.max(0.0))
    }
}

fn seconds_of(folder: &Path) -> Option<f64> {
    let text = fs::read_to_string(folder.join("cpu.stat")).ok()?;
    let micros = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(micros.parse::<f64>().ok()? / 1e6)
}

/// The group that holds all groups of this process, made when it is first asked for.
fn ours() -> Option<PathBuf> {
    let folder = cgroups()?.join(format!("memfs-bench-{}", std::process::id()));
    // It is there, or there is none to be had.
    let _ = fs::create_dir(&folder);
    folder.is_dir().then_some(folder)
}

/// A group is busy until what was in it has ended altogether.
fn remove_group(folder: &Path) {
    let removed = wait_for_the_end("removal", || {
        let removed = fs::remove_dir(folder);
        let busy = removed.is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy);
        Ok((!busy).then_some(()))
    });
    if removed.is_err() {
        eprintln!("memfs-bench: {} is left", folder.display());
    }
}

/// As long as it lives, this process and all that it starts go before all others, so that what else the
/// machine does disturbs little; among themselves they are equal. Where there is no cgroup v1 of
/// processors nothing happens.
pub struct First(Option<PathBuf>);

impl First {
    /// Begins.
    pub fn new() -> First {
        let folder = mounted("cgroup", |options| {
            options.split(',').any(|option| option == "cpu")
        });
        let folder = folder.map(|top| top.join(format!("memfs-bench-{}", std::process::id())));
        let entered = folder.filter(|folder| {
            let entered = fs::create_dir(folder)
                .and_then(|()| fs::write(folder.join("cpu.shares"), SHARES))
                .and_then(|()| match folder.join("cpu.rt_runtime_us") {
                    limit if limit.exists() => fs::write(limit, LINK_MICROS),
                    _ => Ok(()),
                })
                .and_then(|()| fs::write(folder.join("cgroup.procs"), "0"));
            entered.is_ok()
        });
        First(entered)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // Back to where it came from, as far as that is known.
            let _ = fs::write(folder.with_file_name("cgroup.procs"), "0");
            remove_group(folder);
        }
    }
}

/// Removes it, when all groups are gone.
pub fn remove_groups() {
    if let Some(folder) = ours() {
        remove_group(&folder);
    }
}

/// Where control groups (v2) are mounted.
fn cgroups() -> Option<PathBuf> {
    mounted("cgroup2", |_| true)
}

/// Where a file system of this type with such options is mounted.
fn mounted(kind: &str, suits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, its_kind, options) = (words.next()?, words.next()?, words.next()?);
        (its_kind == kind && suits(options)).then(|| PathBuf::from(point))
    })
}
