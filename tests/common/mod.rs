//! What tests of whole programs share: a home of their own, servers, mounts, programs to run.
//!
//! ```text
//! Home  ── a temporary folder that is HOME, cache and runtime folder of every memfs it starts
//!  ├─ Serve ── memfs serve of a folder on loopback
//!  └─ Mount ── memfs mount of it
//! ```
//!
//! Declare them in this order: they are dropped in the reverse one, on panic too. A mount that does
//! not unmount and a process that does not end fail the test, and are cleaned away all the same.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test binary uses a part of it; a test fails by panicking"
)]

pub mod dice;
pub mod disks;
pub mod hands;
pub mod mapped;
pub mod relay;
pub mod sshd;

pub use dice::noise;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a condition may take to come true before it is taken for one that never will.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something is so.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5)); // between two looks
    }
}

/// Says that a test, or a part of one, is left out. Past the capture of the test runner.
pub fn skip(name: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIP {name}: {reason}");
}

/// Whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a program is; if it is not installed, says that `test` is left out.
pub fn find(test: &str, program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    let found = places.find(|path| path.is_file());
    if found.is_none() {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// Whether a program is installed; if not, says that `test` is left out.
pub fn has(test: &str, program: &str) -> bool {
    find(test, program).is_some()
}

/// A Python that has these modules; if there is none, says that `test` is left out.
pub fn python(test: &str, modules: &str) -> Option<Command> {
    let import = format!("import {modules}");
    for python in ["python3", "/usr/bin/python3"] {
        let mut tried = Command::new(python);
        let tried = tried.args(["-c", &import]).stderr(Stdio::null()).status();
        if tried.is_ok_and(|status| status.success()) {
            return Some(Command::new(python));
        }
    }
    skip(test, &format!("no python3 with {modules}"));
    None
}

/// Runs a program to its end. What it printed on stdout, if it went well.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program to its end, however that is.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a script of bash in a folder; the first command that fails ends it.
#[track_caller]
pub fn bash(folder: &Path, script: &str) -> String {
    let mut bash = Command::new("bash");
    run(bash
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder))
}

/// What a program complained about: its stderr, if it failed with this code.
#[track_caller]
pub fn complaint(command: &mut Command, code: i32) -> String {
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{stderr}");
    stderr
}

/// Mount points in a folder.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let points = points.map(|point| PathBuf::from(point.replace("\\040", " ")));
    points.filter(|point| point.starts_with(folder)).collect()
}

/// Processes whose arguments or environment name a folder, other than this one.
pub fn processes_of(folder: &Path) -> Vec<u32> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let names_it = |path: PathBuf| {
        let bytes = fs::read(path).unwrap_or_default(); // it may just have ended
        bytes.windows(needle.len()).any(|window| window == needle)
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|pid| *pid != std::process::id())
            && (names_it(entry.path().join("cmdline")) || names_it(entry.path().join("environ")))
        {
            found.push(pid);
        }
    }
    found
}

/// Sends a signal.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
        let _ = rustix::process::kill_process(pid, signal); // it may just have ended
    }
}

/// A home for memfs: keys, caches and sockets of its own, and room for the test's files.
pub struct Home {
    folder: tempfile::TempDir,
    /// The memfs to run.
    program: PathBuf,
    /// Who runs it, and whose group, if not who runs the test.
    user: Option<u32>,
}

impl Home {
    pub fn new() -> Home {
        Home::below(&std::env::temp_dir()).unwrap()
    }

    /// A home that a user and group can get to and run memfs in, wherever the other homes and the build
    /// are. Still our own: see [`Home::give_to`]. Why there is none, if there is no such place.
    pub fn within_reach_of(id: u32) -> Result<Home, String> {
        let mut complaints = String::new();
        let usual = ["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from);
        for parent in std::iter::once(std::env::temp_dir()).chain(usual) {
            match Home::below(&parent).and_then(|home| home.reached_by(id)) {
                Ok(home) => return Ok(home),
                Err(why) => complaints += &format!("; {}: {why}", parent.display()),
            }
        }
        Err(format!(
            "no place where user {id} can run memfs{complaints}"
        ))
    }

    fn reached_by(mut self, id: u32) -> std::io::Result<Home> {
        let program = self.path("memfs");
        fs::copy(&self.program, &program)?;
        for path in [self.folder.path(), &program] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
        }
        self.program = program;
        let mut trial = Command::new(&self.program);
        trial.arg("--version").current_dir("/").stdin(Stdio::null());
        if is_root() {
            trial.uid(id).gid(id);
        }
        let trial = trial.output()?;
        if !trial.status.success() {
            let said = String::from_utf8_lossy(&trial.stderr);
            return Err(std::io::Error::other(format!("{} {said}", trial.status)));
        }
        Ok(self)
    }

    /// A home in memory, where there is room for one: for tests that sync a lot.
    pub fn in_memory() -> Home {
        let shm = Path::new("/dev/shm");
        let space = rustix::fs::statvfs(shm).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
        match space > 256 << 20 {
            true => Home::below(shm).unwrap(),
            false => Home::new(),
        }
    }

    fn below(parent: &Path) -> std::io::Result<Home> {
        let mut builder = tempfile::Builder::new();
        let home = Home {
            folder: builder.prefix("memfs-test-").tempdir_in(parent)?,
            program: env!("CARGO_BIN_EXE_memfs").into(),
            user: None,
        };
        for name in ["home", "run", "logs"] {
            home.folder(name);
        }
        fs::set_permissions(home.path("run"), PermissionsExt::from_mode(0o700))?;
        Ok(home)
    }

    /// Gives it, and what is in it so far, to another user, who runs every memfs from now on.
    pub fn give_to(&mut self, id: u32) {
        self.user = Some(id);
        let whole = self.folder.path();
        run(Command::new("chown")
            .args(["-R", &format!("{id}:{id}")])
            .arg(whole));
    }

    /// Where something is, or is to be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder, made if there is none.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// The memfs that it runs.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A folder with the links that `mount(8)` looks for in `/sbin`.
    pub fn mount_helpers(&self) -> PathBuf {
        let folder = self.folder("sbin");
        for name in ["mount.memfs", "mount.fuse.memfs"] {
            std::os::unix::fs::symlink(&self.program, folder.join(name)).unwrap();
        }
        folder
    }

    /// memfs, with this home.
    pub fn memfs<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(id) = self.user {
            command.uid(id).gid(id).current_dir("/"); // not where we are: they may not be allowed to be
        }
        command
            .args(args)
            .env("HOME", self.path("home"))
            .env("XDG_CONFIG_HOME", self.path("home/.config"))
            .env("XDG_CACHE_HOME", self.path("home/.cache"))
            .env("XDG_STATE_HOME", self.path("home/.local/state"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("RUST_BACKTRACE", "1");
        command
    }

    /// A file for what a program says.
    fn log(&self, name: &str) -> File {
        let name = Path::new(name).file_name().unwrap();
        let path = self.path("logs").join(name);
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
    }

    /// Everything that was said on stderr so far.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.path("logs")).unwrap().flatten() {
            let said = fs::read(entry.path()).unwrap_or_default();
            text += &format!("--- {:?}\n", entry.file_name());
            text += &String::from_utf8_lossy(&said);
        }
        text
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let mounts = mounts_below(self.folder.path());
        for mount in &mounts {
            // A forced one first: it frees whoever still waits for an answer.
            let _ = Command::new("umount").arg("-f").arg(mount).output();
            let _ = Command::new("fusermount3").arg("-uz").arg(mount).output();
        }
        let ended = |folder: &Path| processes_of(folder).is_empty();
        let start = Instant::now();
        while !ended(self.folder.path()) && start.elapsed() < PATIENCE / 4 {
            std::thread::sleep(Duration::from_millis(20)); // between two looks
        }
        let processes = processes_of(self.folder.path());
        for pid in &processes {
            signal(*pid, rustix::process::Signal::KILL);
        }
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}", self.logs());
        } else {
            let left = format!("{mounts:?}, processes {processes:?}\n{}", self.logs());
            assert!(
                mounts.is_empty() && processes.is_empty(),
                "left behind: {left}"
            );
        }
    }
}

/// A running `memfs serve`.
pub struct Serve {
    child: Child,
    /// `IP:PORT`.
    pub address: String,
    /// `SHA256:…`.
    pub key: String,
}

impl Serve {
    /// Serves a store on a free port.
    pub fn start(home: &Home, store: impl AsRef<OsStr>) -> Serve {
        Serve::start_at(home, store, "127.0.0.1:0", &[])
    }

    /// Serves a store at an address, with options.
    #[track_caller]
    pub fn start_at(home: &Home, store: impl AsRef<OsStr>, at: &str, options: &[&str]) -> Serve {
        let mut command = home.memfs(["serve", "--listen", at]);
        command.args(options).arg(store);
        Serve::run(home, command)
    }

    /// Serves a store with a process that may have only so many files open.
    #[track_caller]
    pub fn with_limit(home: &Home, store: impl AsRef<OsStr>, files_max: Option<u64>) -> Serve {
        let mut command = home.memfs(["serve", "--listen", "127.0.0.1:0"]);
        command.arg(store);
        match files_max {
            Some(files_max) => Serve::run(home, disks::limited(&command, files_max)),
            None => Serve::run(home, command),
        }
    }

    #[track_caller]
    fn run(home: &Home, mut command: Command) -> Serve {
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(home.log("serve"));
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let words: Vec<&str> = line.trim_end().rsplitn(4, ' ').collect();
        let [key, "key", address, start] = words[..] else {
            let _ = child.kill();
            panic!(
                "not a ready line: {line:?} {:?}\n{}",
                child.wait(),
                home.logs()
            );
        };
        assert!(
            start.starts_with("memfs: serving ") && start.ends_with(" on"),
            "{line}"
        );
        assert!(key.starts_with("SHA256:"), "{line}");
        let (address, key) = (address.to_owned(), key.to_owned());
        Serve {
            child,
            address,
            key,
        }
    }

    /// What to mount.
    pub fn source(&self) -> String {
        format!("memfs://{}/", self.address)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.die();
    }

    /// The same, where it is of use yet.
    pub fn die(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub fn stop(mut self) {
        signal(self.pid(), rustix::process::Signal::TERM);
        let mut status = None;
        wait_until("the server has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(
            status.unwrap().success(),
            "the server ended with {status:?}"
        );
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// A mount, by a daemon.
pub struct Mount<'a> {
    home: &'a Home,
    point: PathBuf,
    mounted: bool,
}

impl<'a> Mount<'a> {
    /// Mounts what is served, below the home.
    #[track_caller]
    pub fn start(home: &'a Home, serve: &Serve, name: &str) -> Mount<'a> {
        Mount::with(home, &serve.source(), name, &[])
    }

    /// Mounts a source with options. Its cache is its own unless they say otherwise.
    #[track_caller]
    pub fn with(home: &'a Home, source: &str, name: &str, options: &[&str]) -> Mount<'a> {
        let command = Mount::command(home, source, &home.folder(name), options);
        Mount::by(home, command, name)
    }

    /// Mounts by this command.
    #[track_caller]
    pub fn by(home: &'a Home, mut command: Command, name: &str) -> Mount<'a> {
        let point = home.folder(name);
        command.stderr(home.log(name)).stdout(home.log(name));
        let status = command.stdin(Stdio::null()).status().unwrap();
        let mount = Mount {
            home,
            point,
            mounted: true,
        };
        assert!(status.success(), "{command:?}: {status}\n{}", home.logs());
        mount
    }

    /// The command that mounts.
    pub fn command(home: &Home, source: &str, point: &Path, options: &[&str]) -> Command {
        let cache = format!("cache-of-{}", point.file_name().unwrap().to_str().unwrap());
        let mut command = home.memfs(["mount"]);
        if !options.contains(&"--cache") {
            command.arg("--cache").arg(home.path(&cache));
        }
        command.args(options).arg(source).arg(point);
        command
    }

    /// The process that serves it.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let is_it = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).skip(1);
            words.next() == Some(b"mount") && words.any(|w| w == self.point.as_os_str().as_bytes())
        };
        let mut found = processes_of(&self.point);
        found.retain(is_it);
        // It has a helper of the same kind below it.
        let parent = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            line.and_then(|pid| pid.trim().parse().ok()).unwrap_or(0)
        };
        let all = found.clone();
        found.retain(|pid| !all.contains(&parent(pid)));
        assert_eq!(found.len(), 1, "which of {found:?} serves {:?}", self.point);
        found[0]
    }

    /// Where it is.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Where something in it is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// What `memfs status --json` tells.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let mut command = self.home.memfs(["status", "--json"]);
        let text = run(command.arg(&self.point));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// What it tells of one file.
    #[track_caller]
    pub fn region(&self, path: &str) -> serde_json::Value {
        let status = self.status();
        let mut regions = status["regions"].as_array().unwrap().iter();
        let found = regions.find(|region| region["path"] == path);
        found
            .unwrap_or_else(|| panic!("no {path} in {status}"))
            .clone()
    }

    /// Unmounts as a user would; everything is pushed before.
    #[track_caller]
    pub fn unmount(mut self) {
        self.mounted = false;
        let output = unmounted(self.home.memfs(["umount"]).arg(&self.point));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {said}", output.status);
        assert_eq!(mounts_below(&self.point), Vec::<PathBuf>::new());
    }

    /// What unmounting is left to the caller.
    pub fn leave(mut self) -> PathBuf {
        self.mounted = false;
        self.point.clone()
    }
}

/// What an unmounting says. A program that another test of this process starts has copies of all open files until it
/// runs: who is busy so is asked again.
fn unmounted(umount: &mut Command) -> Output {
    let begin = Instant::now();
    loop {
        let output = output(umount);
        let busy = String::from_utf8_lossy(&output.stderr).contains(" is busy: ");
        if !busy || begin.elapsed() > PATIENCE / 4 {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20)); // between two looks
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        let mut umount = self.home.memfs(["umount"]);
        if std::thread::panicking() {
            umount.arg("--force"); // the test has failed, and the server may be gone
        }
        let output = unmounted(umount.arg(&self.point));
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let what = format!("{umount:?}: {}\n{said}", output.status);
            assert!(std::thread::panicking(), "{what}");
            let _ = writeln!(std::io::stderr(), "{what}");
        }
    }
}
