//! Programs that are killed while they wait for a server that is away: they go, and leave nothing half done.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, noise, signal, wait_until};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What a program does before the server is away, and how it waits then; each in a folder of its own, `here`, with the files
/// `file`, of which the first page has been read, and `program`.
const WAYS: [(&str, &str, &str); 19] = [
    ("read", "", "os.pread(f, 4096, 1 << 20)"),
    ("fault", "m = mmap.mmap(f, 0)", "m[1 << 20]"),
    ("write", "", "os.pwrite(f, b'part of a page', 1 << 20)"),
    ("copy", "", "os.copy_file_range(f, f, 4096, 1 << 20, 0)"),
    ("lookup", "", "os.stat(here + '/nothing')"),
    (
        "open",
        "os.stat(here + '/program')",
        "os.open(here + '/program', os.O_RDONLY)",
    ),
    (
        "stat",
        "os.pwrite(f, b'dirty', 0)",
        "os.stat(here + '/file')",
    ),
    ("list", "", "os.listdir(here)"),
    ("fsync", "os.pwrite(f, b'dirty', 0)", "os.fsync(f)"),
    ("close", "os.pwrite(f, b'dirty', 0)", "os.close(f)"),
    (
        "end",
        "os.pwrite(f, b'dirty', 0)",
        "os.pread(f, 4096, 1 << 20)",
    ),
    (
        "rename",
        "",
        "os.rename(here + '/program', here + '/renamed')",
    ),
    ("remove", "", "os.remove(here + '/program')"),
    (
        "create",
        "",
        "os.open(here + '/created', os.O_CREAT | os.O_WRONLY)",
    ),
    ("cut", "", "os.ftruncate(f, 100)"),
    ("flock", "import fcntl", "fcntl.flock(f, fcntl.LOCK_EX)"),
    (
        "fcntl",
        "import fcntl",
        "fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    ),
    (
        "unlock",
        "import fcntl; fcntl.lockf(f, fcntl.LOCK_EX)",
        "fcntl.lockf(f, fcntl.LOCK_UN)",
    ),
    ("exec", "", "os.execv(here + '/program', ['program'])"),
];

/// Continues a server that was stopped.
struct Stopped(u32);

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

/// Whether a program waits for an answer, or for a page that one brings.
fn waits(hands: &Hands) -> bool {
    let at = fs::read_to_string(format!("/proc/{}/wchan", hands.pid())).unwrap_or_default();
    at.contains("wait_answer") || at.contains("folio") || at.contains("fuse")
}

/// Served files that a server has open.
fn open_files(serve: &Serve, served: &Path) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", serve.pid())).unwrap();
    let named = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    let is_file = |path: &std::path::PathBuf| path.starts_with(served) && !path.is_dir();
    named.filter(is_file).count()
}

fn fill(served: &Path) {
    for (name, ..) in WAYS {
        let folder = served.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), noise(2 << 20, 1)).unwrap();
        fs::write(folder.join("program"), noise(300_000, 2)).unwrap();
        let may_run = PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.join("program"), may_run).unwrap();
    }
}

#[test]
fn who_is_killed_while_it_waits_is_gone() {
    let home = Home::new();
    let served = home.folder("served");
    fill(&served);
    let serve = Serve::start(&home, &served);
    let options = ["--pull", "demand", "--no-learn", "--push-interval", "1h"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let beside = Mount::start(&home, &serve, "beside");
    let mut all = Vec::new();
    for (name, before, wait) in WAYS {
        let Some(mut hands) = Hands::new("who_is_killed_while_it_waits_is_gone") else {
            return;
        };
        hands.make(&format!("here = {:?}", mount.path(name)));
        hands.make("f = os.open(here + '/file', os.O_RDWR)");
        hands.make("os.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM)");
        hands.make("len(os.pread(f, 4096, 0))");
        // Before the first store the kernel asks for something.
        hands.make("os.pwrite(f, os.pread(f, 1, 0), 0) and os.fsync(f)");
        hands.make(&format!("x = 0; {before}"));
        all.push((name, wait, hands));
    }
    signal(serve.pid(), Signal::STOP);
    let stopped = Stopped(serve.pid());
    for (name, wait, hands) in &mut all {
        hands.begin(wait);
        wait_until(&format!("'{name}' waits"), || waits(hands));
    }
    for (name, _, hands) in &mut all {
        signal(hands.pid(), Signal::KILL);
        wait_until(&format!("'{name}' is gone"), || hands.is_gone());
    }
    drop(stopped);
    all.clear();
    nothing_is_left(&mount, &beside, &served);
    let left = || open_files(&serve, &served);
    beside.unmount();
    wait_until("what was open is closed", || left() == 0);
    mount.unmount();
    serve.stop();
}

/// All of it can be done now, and what was stored before is there.
fn nothing_is_left(mount: &Mount, beside: &Mount, served: &Path) {
    let whole = noise(2 << 20, 1);
    let Some(mut hands) = Hands::new("who_is_killed_while_it_waits_is_gone") else {
        return;
    };
    hands.make("import fcntl");
    for (name, before, _) in WAYS {
        let there = fs::read(mount.path(name).join("file")).unwrap();
        if name != "cut" || there.len() > 100 {
            let from = if before.contains("dirty") { 5 } else { 0 };
            assert!(there[..5] == *b"dirty" || from == 0, "{name}");
            // A copy may have been made, or not.
            let to = if name == "copy" { 1 << 20 } else { whole.len() };
            assert!(there[from..to] == whole[from..to], "{name}");
        }
        wait_until("it is there", || {
            fs::read(served.join(name).join("file")).unwrap() == there
        });
        assert!(fs::read_dir(mount.path(name)).unwrap().count() >= 1);
        let file = beside.path(name).join("file");
        hands.make(&format!("f = os.open({file:?}, os.O_RDWR)"));
        for lock in ["fcntl.flock", "fcntl.lockf"] {
            let lock = format!("{lock}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)");
            wait_until(&format!("'{name}': {lock}"), || hands.try_do(&lock).is_ok());
        }
        hands.make("os.close(f)");
        fs::write(mount.path(name).join("file"), name).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), name);
        for other in ["program", "renamed", "created"] {
            let there = |root: &Path| root.join(name).join(other).exists();
            assert_eq!(there(mount.point()), there(served), "{name}/{other}");
        }
    }
}
