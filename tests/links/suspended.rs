//! A mount whose process stands still, as on a machine that is suspended, for longer than its lease.

use crate::common::hands::Hands;
use crate::common::{Home, Mount, Serve, noise, skip, wait_until};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A group of processes that the kernel can freeze; which is how it suspends them as well.
struct Freezer {
    folder: PathBuf,
    /// The file to write to, and what freezes and thaws.
    switch: [&'static str; 3],
    /// What says so when all stand still, and in which file.
    frozen: [&'static str; 2],
}

impl Freezer {
    /// `None`, and it is said that `test` is left out, where there is none that can be used.
    fn new(test: &str, pids: &[u32]) -> Option<Freezer> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = |is: fn(&str) -> bool| {
            let line = table.lines().find(|line| is(line))?;
            line.split(' ').nth(4).map(PathBuf::from)
        };
        let first = point(|line| line.contains(" - cgroup ") && line.ends_with(",freezer"));
        let second = point(|line| line.contains(" - cgroup2 "));
        let (root, switch, frozen) = match (first, second) {
            (Some(root), _) => {
                let frozen = ["freezer.state", "FROZEN"];
                (root, ["freezer.state", "FROZEN", "THAWED"], frozen)
            }
            (None, Some(root)) => {
                let frozen = ["cgroup.events", "frozen 1"];
                (root, ["cgroup.freeze", "1", "0"], frozen)
            }
            (None, None) => {
                skip(test, "no cgroup that freezes");
                return None;
            }
        };
        let folder = root.join(format!("memfs-test-{}-{}", std::process::id(), pids[0]));
        if let Err(why) = fs::create_dir(&folder) {
            skip(test, &format!("{}: {why}", folder.display()));
            return None;
        }
        let freezer = Freezer {
            folder,
            switch,
            frozen,
        };
        for pid in pids {
            fs::write(freezer.folder.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        Some(freezer)
    }

    /// Has them stand still.
    fn freeze(&self) {
        fs::write(self.folder.join(self.switch[0]), self.switch[1]).unwrap();
        wait_until("all stand still", || self.is_frozen());
    }

    fn is_frozen(&self) -> bool {
        let [file, says] = self.frozen;
        let state = fs::read_to_string(self.folder.join(file)).unwrap();
        state.lines().any(|line| line == says)
    }

    fn thaw(&self) {
        fs::write(self.folder.join(self.switch[0]), self.switch[2]).unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.folder.join(self.switch[0]), self.switch[2]);
        let procs = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let root = self.folder.with_file_name("cgroup.procs");
            let _ = fs::write(root, pid); // it may just have ended
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

fn store(path: &Path, bytes: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn who_stood_still_for_longer_than_its_lease_shows_nothing_of_before() {
    let test = "who_stood_still_for_longer_than_its_lease_shows_nothing_of_before";
    let home = Home::new();
    let served = home.folder("served");
    for name in ["theirs", "cut", "ours"] {
        fs::write(served.join(name), noise(1 << 20, 1)).unwrap();
    }
    let serve = Serve::start_at(&home, &served, "127.0.0.1:0", &["--lease", "1s"]);
    let options = ["--push-interval", "1h"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let beside = Mount::start(&home, &serve, "beside");
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    for (name, file) in [("f", "theirs"), ("g", "cut"), ("h", "ours")] {
        let how = if name == "h" { "O_RDWR" } else { "O_RDONLY" };
        let path = mount.path(file);
        hands.make(&format!("{name} = os.open({path:?}, os.{how})"));
        assert_eq!(
            hands.make(&format!("len(os.pread({name}, 1 << 20, 0))")),
            "1048576"
        );
    }
    hands.make("m = mmap.mmap(f, 0, access=mmap.ACCESS_READ)");
    hands.make("n = mmap.mmap(g, 0, access=mmap.ACCESS_READ)");
    hands.make("k = mmap.mmap(h, 0)");
    hands.make("len(m[:]), len(n[:])");
    hands.make("os.pwrite(h, b'by write', 5000)");
    hands.make("k[9000:9010] = b'by mapping'");
    // Its helper too, and whoever uses it, as all do on a machine that is suspended.
    let Some(freezer) = Freezer::new(test, &[mount.pid(), hands.pid()]) else {
        return;
    };

    freezer.freeze();
    // Answered when the lease has run out.
    store(&beside.path("theirs"), b"after", 0);
    store(&beside.path("theirs"), b"after", 500_000);
    let cut = OpenOptions::new().write(true).open(beside.path("cut"));
    cut.unwrap().set_len(100).unwrap();
    store(&beside.path("cut"), b"after", 0);
    fs::write(beside.path("new"), "new").unwrap();
    assert!(freezer.is_frozen());
    freezer.thaw();

    // The kernel thaws all at once, and shows what it has until the process has come to taking it back.
    let begin = std::time::Instant::now();
    wait_until("what the kernel had is taken back", || {
        hands.make("m[:5], n[:5]") == "(b'after', b'after')"
    });
    println!("taken back {:.1?} after the thaw", begin.elapsed());
    assert_eq!(
        hands.make("os.pread(f, 5, 500_000), m[500_000:500_005]"),
        "(b'after', b'after')"
    );
    assert_eq!(hands.make("os.pread(f, 5, 0)"), "b'after'");
    assert_eq!(
        hands.make("os.fstat(g).st_size, os.pread(g, 5, 0), n[:5]"),
        "(100, b'after', b'after')"
    );
    assert_eq!(
        hands.make("len(os.pread(g, 1 << 20, 0)), n[100:200] == bytes(100)"),
        "(100, True)"
    );
    assert_eq!(fs::read(mount.path("new")).unwrap(), b"new");
    hands.make("os.fsync(h)");
    let mut whole = noise(1 << 20, 1);
    whole[5000..5008].copy_from_slice(b"by write");
    whole[9000..9010].copy_from_slice(b"by mapping");
    assert!(fs::read(served.join("ours")).unwrap() == whole);
    assert!(fs::read(beside.path("ours")).unwrap() == whole);
    drop(freezer);
    drop(hands);
    beside.unmount();
    mount.unmount();
    serve.stop();
}
