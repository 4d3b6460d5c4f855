//! The mounting side runs out of something: room for its copies, descriptors; or a file becomes shorter under those who have
//! it mapped. No panic, nothing stuck, nothing lost without a word; and it works again afterwards.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::disks::{Disk, limited};
use common::hands::Hands;
use common::{Home, Mount, Serve, noise, run, wait_until};
use std::fs::{self, File, OpenOptions};
use std::path::Path;

const MIB: usize = 1 << 20;

/// A disk for the cache, what is served, and a mount.
fn with_small_cache<'a>(
    home: &'a Home,
    disk: &Disk,
    fill: impl FnOnce(&Path),
) -> (Serve, Mount<'a>) {
    let served = home.folder("served");
    fill(&served);
    let serve = Serve::start(home, &served);
    let cache = disk.path().to_str().unwrap();
    let mount = Mount::with(home, &serve.source(), "mnt", &["--cache", cache]);
    (serve, mount)
}

fn cache(test: &str, home: &Home, size: &str) -> Option<Disk> {
    Disk::small(test, home, "cache", &format!("size={size},mode=700"))
}

/// A cache that promised more room than its disk has is a smaller cache.
#[test]
fn more_than_the_disk_of_the_cache_holds() {
    let test = "more_than_the_disk_of_the_cache_holds";
    let home = Home::new();
    let Some(disk) = cache(test, &home, "6M") else {
        return;
    };
    let content = noise(24 * MIB, 1);
    let (_serve, mount) = with_small_cache(&home, &disk, |served| {
        fs::write(served.join("file"), &content).unwrap();
    });
    assert!(fs::read(mount.path("file")).unwrap() == content);
    assert!(fs::read(mount.path("file")).unwrap() == content, "again");
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    fs::write(home.path("data"), noise(24 * MIB, 2)).unwrap();
    hands.make(&format!(
        "data = open({:?}, 'rb').read()",
        home.path("data")
    ));
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
    hands.make("m = mmap.mmap(f, 0)");
    hands.make("old = m[:]");
    // What is dirty goes, so that there is room for more.
    hands.make("for at in range(0, 24 << 20, 1 << 20): os.pwrite(f, data[at:at + (1 << 20)], at)");
    hands.make("os.fsync(f)");
    let served = home.path("served/file");
    assert!(fs::read(&served).unwrap() == noise(24 * MIB, 2));
    assert_eq!(hands.make("m[:] == data"), "True");
    hands.make("m[:] = old");
    hands.make("m.flush()");
    assert!(fs::read(&served).unwrap() == content);
    assert!(fs::read(mount.path("file")).unwrap() == content);
}

/// No room at all: reads go on without copies, stores are refused.
#[test]
fn a_disk_of_the_cache_without_room() {
    let test = "a_disk_of_the_cache_without_room";
    let home = Home::new();
    let Some(disk) = cache(test, &home, "4M") else {
        return;
    };
    let content = noise(3 * MIB, 1);
    let (_serve, mount) = with_small_cache(&home, &disk, |served| {
        for name in ["open", "file", "mapped"] {
            fs::write(served.join(name), &content).unwrap();
        }
        File::create(served.join("hole"))
            .unwrap()
            .set_len(3 << 20)
            .unwrap();
    });
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    let open = |name: &str| format!("os.open({:?}, os.O_RDWR)", mount.path(name));
    hands.make(&format!("f = {}; g = {}", open("open"), open("mapped")));
    hands.make("m = mmap.mmap(g, 0)");
    assert_eq!(hands.make("os.pread(f, 4, 0) == m[:4]"), "True");
    // Whoever fills the disk takes what is made room for as well, until nothing is left.
    let mut fillers = Vec::new();
    let mut fill = || {
        let filler = disk.fill(0);
        let kept = filler.with_extension(fillers.len().to_string());
        fs::rename(&filler, &kept).unwrap();
        fillers.push(kept);
    };
    fill();
    assert!(fs::read(mount.path("file")).unwrap() == content);
    fill();
    assert!(fs::read(mount.path("file")).unwrap() == content, "again");
    assert!(fs::read(mount.path("hole")).unwrap() == vec![0; 3 << 20]);
    hands.make(&format!("h = {}; n = mmap.mmap(h, 0)", open("hole")));
    assert_eq!(hands.make("n[:].count(0)"), (3 << 20).to_string());
    assert_eq!(hands.make("m[:] == os.pread(g, 3 << 20, 0)"), "True");
    assert_eq!(hands.make("m[:] == os.pread(f, 3 << 20, 0)"), "True");
    let full = Err("ENOSPC".to_owned());
    let store = "for at in range(0, 2 << 20, 4096): os.pwrite(f, b'stored' * 600, at)";
    let mapped = "m[1 << 20:2 << 20] = bytes(1 << 20); m.flush()";
    for code in [store, mapped] {
        wait_until("nothing is left that room could be made of", || {
            let mut forget = home.memfs(["forget"]);
            run(forget.args(["open", "file", "mapped", "hole"].map(|name| mount.path(name))));
            fill();
            hands.try_do(code) == full
        });
    }
    // What was not refused is over there, or goes there when it is asked to.
    assert_eq!(mount.status()["link"], "up");
    for filler in fillers {
        fs::remove_file(filler).unwrap();
    }
    hands.make(mapped);
    hands.make(store);
    hands.make("os.fsync(f)");
    let mut expected = content.clone();
    expected[MIB..2 * MIB].fill(0);
    assert!(fs::read(home.path("served/mapped")).unwrap() == expected);
    let there = fs::read(home.path("served/open")).unwrap();
    assert!(
        (0..2 * MIB)
            .step_by(4096)
            .all(|at| there[at..].starts_with(&b"stored".repeat(600)))
    );
    drop(hands);
    mount.unmount();
}

/// Files of which more are opened than a process of memfs may have open.
fn opens_more_than_it_may(test: &str, home: &Home, mount: &Mount, files: usize) {
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    // One after the other there is no limit.
    for number in 0..files {
        let path = mount.path(&format!("file-{number}"));
        assert_eq!(fs::read_to_string(path).unwrap(), number.to_string());
    }
    hands.make(&format!("path = {:?}", mount.path("file-")));
    hands.make("held = []");
    let error = hands.try_do(&format!(
        "for n in range({files}): held.append(os.open(path + str(n), os.O_RDWR))"
    ));
    assert_eq!(error, Err("EMFILE".into()), "{}", home.logs());
    let held: usize = hands.make("len(held)").parse().unwrap();
    assert!((5..files).contains(&held), "{held}");
    // Those that are open can be used, and commands still work.
    hands.make("for n, f in enumerate(held): assert os.pread(f, 10, 0) == str(n).encode()");
    hands.make("os.pwrite(held[0], b'new', 0); os.fsync(held[0])");
    assert_eq!(mount.status()["link"], "up");
    hands.make("for f in held: os.close(f)");
    // Nobody waits for the server to close them.
    for n in 0..5 {
        let open = format!("held[{n}] = os.open(path + '{n}', os.O_RDWR)");
        wait_until("what was closed is free", || hands.try_do(&open).is_ok());
    }
    let last = mount.path(&format!("file-{}", files - 1));
    assert_eq!(fs::read_to_string(last).unwrap(), (files - 1).to_string());
    assert_eq!(
        fs::read_to_string(home.path("served/file-0")).unwrap(),
        "new"
    );
}

fn many_files(home: &Home, count: usize) {
    let served = home.folder("served");
    for number in 0..count {
        fs::write(served.join(format!("file-{number}")), number.to_string()).unwrap();
    }
}

#[test]
fn a_server_without_descriptors() {
    let home = Home::new();
    many_files(&home, 300);
    let serve = Serve::with_limit(&home, home.path("served"), Some(120));
    let mount = Mount::start(&home, &serve, "mnt");
    opens_more_than_it_may("a_server_without_descriptors", &home, &mount, 300);
    mount.unmount();
    serve.stop();
}

#[test]
fn a_mount_without_descriptors() {
    let home = Home::new();
    many_files(&home, 300);
    let serve = Serve::start(&home, home.path("served"));
    let command = Mount::command(&home, &serve.source(), &home.folder("mnt"), &[]);
    let mount = Mount::by(&home, limited(&command, 120), "mnt");
    opens_more_than_it_may("a_mount_without_descriptors", &home, &mount, 300);
    mount.unmount();
}

/// By a program on the serving machine, and by another mount.
#[test]
fn a_file_that_others_cut_short_while_it_is_mapped() {
    let test = "a_file_that_others_cut_short_while_it_is_mapped";
    let home = Home::new();
    let served = home.folder("served");
    let path = served.join("file");
    fs::write(&path, vec![1; 5 * 4096]).unwrap();
    fs::write(served.join("other"), vec![1; 5 * 4096]).unwrap();
    let serve = Serve::start(&home, &served);
    let (a, b) = (
        Mount::start(&home, &serve, "a"),
        Mount::start(&home, &serve, "b"),
    );
    let mapped = |name: &str| {
        let mut hands = Hands::new(test)?;
        hands.make(&format!("f = os.open({:?}, os.O_RDWR)", a.path(name)));
        hands.make("m = mmap.mmap(f, 5 * 4096)");
        assert_eq!(hands.make("m[0], m[5 * 4096 - 1]"), "(1, 1)");
        Some(hands)
    };
    let Some(mut hands) = mapped("file") else {
        return;
    };
    let mut doomed: Vec<Hands> = (0..4).map(|_| mapped("file").unwrap()).collect();
    let mut other = mapped("other").unwrap();
    let mut is_beyond = |code: &str| {
        let ended = doomed.pop().unwrap().try_do(code).unwrap_err();
        assert!(ended.contains("signal: 7"), "{code}: {ended}"); // SIGBUS
    };

    let local = OpenOptions::new().write(true).open(&path).unwrap();
    local.set_len(2 * 4096 + 100).unwrap();
    // Noticed, but not within any time.
    wait_until("it is noticed", || {
        hands.make("os.fstat(f).st_size") == (2 * 4096 + 100).to_string()
    });
    assert_eq!(
        hands.make("m[0], m[2 * 4096 + 99], m[2 * 4096 + 100], m[3 * 4096 - 1]"),
        "(1, 1, 0, 0)"
    );
    is_beyond("m[3 * 4096]");
    is_beyond("m[5 * 4096 - 1] = 1");

    // When this returns, nobody sees what was there.
    let cut = OpenOptions::new().write(true).open(b.path("file")).unwrap();
    cut.set_len(100).unwrap();
    is_beyond("m[4096]");
    is_beyond("m[2 * 4096] = 1");
    assert_eq!(
        hands.make("m[99], m[100], os.fstat(f).st_size"),
        "(1, 0, 100)"
    );
    cut.set_len(5 * 4096).unwrap();
    // The kernel does not ask for a size when a mapping is touched.
    assert_eq!(
        hands.make("os.fstat(f).st_size, m[99], m[100], m[4096], m[5 * 4096 - 1]"),
        "(20480, 1, 0, 0, 0)"
    );
    hands.make("m[3 * 4096] = 7");
    hands.make("m.flush()");
    assert_eq!(other.make("m[0], m[5 * 4096 - 1]"), "(1, 1)");
    let mut expected = vec![0; 5 * 4096];
    expected[..100].fill(1);
    expected[3 * 4096] = 7;
    assert!(fs::read(&path).unwrap() == expected);
    assert!(fs::read(b.path("file")).unwrap() == expected);
}
