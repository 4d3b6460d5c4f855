//! Copies that the kernel reads by itself (`--immutable`), on real mounts: that it does, that nobody ever sees a copy
//! change under him, and that without the option nothing is different.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where anything fails"
)]

mod common;

use common::mapped::Mapped;
use common::{Home, Mount, Serve, complaint, is_root, noise, run, signal, skip, wait_until};
use rustix::fs::SeekFrom;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// No whole number of pages.
const BYTES: usize = (5 << 20) + 123;
/// What the mount's process writes at most besides the content of files, to the kernel and to logs.
const SMALL: u64 = 1 << 20;

/// Whether this machine can do it; if not, says that `test` is left out.
fn can_lend(test: &str, home: &Home) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(['.', '-']).map(|part| part.trim().parse());
    let version = (parts.next(), parts.next());
    let (Some(Ok(major)), Some(Ok(minor))) = version else {
        panic!("which version is {release}?");
    };
    let overlay = rustix::fs::statfs(home.path("")).unwrap().f_type == 0x794c_7630;
    let why = match (is_root(), (major, minor) >= (6, 9), overlay) {
        (false, ..) => "only root may lend files to the kernel",
        (_, false, _) => "needs Linux 6.9",
        (.., true) => "the temporary directory is on a stacked file system",
        _ => return true,
    };
    skip(test, why);
    false
}

fn read(file: &File) -> Vec<u8> {
    // To the end, whatever size the file has by now.
    let mut bytes = vec![0; 2 * BYTES];
    let mut len = 0;
    loop {
        match file.read_at(&mut bytes[len..], len as u64).unwrap() {
            0 => break,
            more => len += more,
        }
    }
    bytes.truncate(len);
    bytes
}

/// Not `assert_eq`, which would print them.
#[track_caller]
fn same(found: &[u8], expected: &[u8]) {
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    let lens = (found.len(), expected.len());
    assert!(found == expected, "differs at {differs:?}, {lens:?} bytes");
}

fn is_lent(mount: &Mount, name: &str) -> bool {
    mount.region(name)["lent"] == true
}

/// Bytes the mount's process has written so far: answers to reads among them.
fn written(mount: &Mount) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{}/io", mount.pid())).unwrap();
    let line = counts.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

fn pull(home: &Home, path: &Path) {
    run(home.memfs(["pull", "--wait"]).arg(path));
}

/// Closing is told to the mount after the program goes on.
fn wait_until_closed(mount: &Mount, name: &str) {
    wait_until("it is closed", || mount.region(name)["opens"] == 0);
}

/// Opens a file that all of is present, and is lent.
#[track_caller]
fn open_lent(mount: &Mount, name: &str) -> File {
    let file = File::open(mount.path(name)).unwrap();
    assert!(is_lent(mount, name), "{}", mount.status());
    file
}

#[test]
fn a_whole_file_is_read_by_the_kernel_itself() {
    const TEST: &str = "a_whole_file_is_read_by_the_kernel_itself";
    for options in [&["--immutable"][..], &["-o", "immutable,cache=memory"]] {
        let home = Home::new();
        if !can_lend(TEST, &home) {
            return;
        }
        let served = home.folder("served");
        let mut bytes = noise(BYTES, 1);
        bytes[1 << 20..2 << 20].fill(0);
        fs::write(served.join("file"), &bytes).unwrap();
        fs::write(served.join("empty"), "").unwrap();
        let serve = Serve::start(&home, &served);
        let mount = Mount::with(&home, &serve.source(), "mnt", options);
        assert!(File::create(mount.path("new")).is_err());

        // One way for all who have it open.
        let first = File::open(mount.path("file")).unwrap();
        assert!(!is_lent(&mount, "file"));
        pull(&home, &mount.path("file"));
        let second = File::open(mount.path("file")).unwrap();
        assert!(!is_lent(&mount, "file"));
        same(&read(&first), &bytes);
        same(&Mapped::new(&second).read(), &bytes);
        drop((first, second));
        wait_until_closed(&mount, "file");

        let first = open_lent(&mount, "file");
        let before = written(&mount);
        same(&read(&first), &bytes);
        let second = open_lent(&mount, "file");
        drop(first);
        wait_until("one is closed", || mount.region("file")["opens"] == 1);
        let mapped = Mapped::new(&second);
        same(&mapped.read(), &bytes);
        assert!(written(&mount) - before < SMALL);
        let end = rustix::fs::seek(&second, SeekFrom::Hole(5)).unwrap();
        assert_eq!(end, BYTES as u64);
        assert_eq!(rustix::fs::seek(&second, SeekFrom::Data(5)).unwrap(), 5);
        let past = rustix::fs::seek(&second, SeekFrom::Data(BYTES as u64));
        assert_eq!(past, Err(rustix::io::Errno::NXIO));
        // A look at a lent file is none at a mapping that writes back.
        run(home.memfs(["flush"]).arg(mount.path("file")));
        same(&read(&open_lent(&mount, "file")), &bytes);
        assert_eq!(fs::read(mount.path("empty")).unwrap(), b"");
        // What nobody reads any more can be dropped.
        drop((second, mapped));
        wait_until("it can be forgotten", || {
            let mut forget = home.memfs(["forget"]);
            let outcome = common::output(forget.arg(mount.path("file")));
            outcome.status.success()
        });
    }
}

#[test]
fn a_second_mount_lends_what_the_first_has_brought() {
    const TEST: &str = "a_second_mount_lends_what_the_first_has_brought";
    let home = Home::new();
    if !can_lend(TEST, &home) {
        return;
    }
    let served = home.folder("served");
    let bytes = noise(BYTES, 2);
    fs::write(served.join("file"), &bytes).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    pull(&home, &mount.path("file"));
    mount.unmount();

    let mount = Mount::with(&home, &serve.source(), "mnt", &["--immutable"]);
    let file = open_lent(&mount, "file");
    let before = written(&mount);
    same(&read(&file), &bytes);
    same(&Mapped::new(&file).read(), &bytes);
    assert!(written(&mount) - before < SMALL);
    drop(file);
    mount.unmount();

    // Without the option it comes through us, and follows the source.
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--read-only"]);
    let file = File::open(mount.path("file")).unwrap();
    let before = written(&mount);
    same(&read(&file), &bytes);
    assert!(written(&mount) - before >= BYTES as u64);
    assert!(!is_lent(&mount, "file"));
    let (changed, mapped) = (noise(BYTES, 3), Mapped::new(&file));
    fs::write(served.join("file"), &changed).unwrap();
    wait_until("the change is seen", || {
        read(&file) == changed && mapped.read() == changed
    });
}

#[test]
fn room_is_not_made_in_what_is_being_read() {
    const TEST: &str = "room_is_not_made_in_what_is_being_read";
    let home = Home::new();
    if !can_lend(TEST, &home) {
        return;
    }
    let served = home.folder("served");
    let (small, large) = (noise(4 << 20, 4), noise(BYTES * 3 / 2, 5));
    fs::write(served.join("small"), &small).unwrap();
    fs::write(served.join("large"), &large).unwrap();
    let serve = Serve::start(&home, &served);
    let options = ["--immutable", "--cache-size", "8M"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    pull(&home, &mount.path("small"));
    wait_until_closed(&mount, "small");
    let file = open_lent(&mount, "small");
    let mapped = Mapped::new(&file);

    let forget = |name: &str| {
        let mut forget = home.memfs(["forget"]);
        forget.arg(mount.path(name));
        forget
    };
    let said = complaint(&mut forget("small"), 1);
    assert!(said.contains("small: ") && said.contains("busy"), "{said}");
    same(&fs::read(mount.path("large")).unwrap(), &large);
    same(&fs::read(mount.path("large")).unwrap(), &large);
    assert!(is_lent(&mount, "small"));
    assert_eq!(mount.region("small")["present_bytes"], small.len());
    same(&read(&file), &small);

    // A mapping outlives the handle. While no room is wanted its copy is not given up.
    wait_until("there is room", || {
        let forgotten = common::output(&mut forget("large")).status.success();
        forgotten && mount.status()["copy_bytes"].as_u64().unwrap() < 5 << 20
    });
    drop(file);
    wait_until_closed(&mount, "small");
    complaint(&mut forget("small"), 1);
    same(&fs::read(mount.path("large")).unwrap(), &large);
    same(&mapped.read(), &small);
    drop(mapped);
    wait_until("it can be forgotten", || {
        common::output(&mut forget("small")).status.success()
    });
    same(&fs::read(mount.path("small")).unwrap(), &small);
}

#[test]
fn a_change_is_seen_when_all_have_closed_it_and_never_in_part() {
    const TEST: &str = "a_change_is_seen_when_all_have_closed_it_and_never_in_part";
    let home = Home::new();
    if !can_lend(TEST, &home) {
        return;
    }
    let served = home.folder("served").join("file");
    let mut old = noise(BYTES, 6);
    fs::write(&served, &old).unwrap();
    let serve = Serve::start(&home, home.path("served"));
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--immutable"]);
    let path = mount.path("file");
    let mut mappings = Vec::new();
    // A part of it, all of it, shorter, longer.
    for (round, len) in [BYTES, BYTES, 1000, BYTES + 5000].into_iter().enumerate() {
        pull(&home, &path);
        wait_until_closed(&mount, "file");
        let file = open_lent(&mount, "file");
        mappings.push((Mapped::new(&file), old.clone()));
        let mut new = noise(len, 7 + round as u64);
        if round == 0 {
            new = old.clone();
            new[3 << 20..][..10].copy_from_slice(b"0123456789");
        }
        let writer = File::options().write(true).open(&served).unwrap();
        writer.set_len(len as u64).unwrap();
        writer.write_all_at(&new, 0).unwrap();
        drop(writer);
        wait_until("the change is announced", || {
            let (here, there) = (fs::metadata(&path).unwrap(), fs::metadata(&served).unwrap());
            let of = |metadata: &fs::Metadata| (metadata.len(), metadata.mtime_nsec());
            of(&here) == of(&there)
        });
        same(&read(&file), &old);
        // The new bytes arrive, somewhere else.
        pull(&home, &path);
        same(&read(&file), &old);
        same(&read(&open_lent(&mount, "file")), &old);
        drop(file);
        wait_until_closed(&mount, "file");
        same(&read(&File::open(&path).unwrap()), &new);
        for (mapped, bytes) in &mappings {
            same(&mapped.read(), bytes);
        }
        old = new;
    }
}

#[test]
fn a_mapping_that_outlives_its_mount_sees_nothing_of_the_next() {
    const TEST: &str = "a_mapping_that_outlives_its_mount_sees_nothing_of_the_next";
    let home = Home::new();
    if !can_lend(TEST, &home) {
        return;
    }
    let served = home.folder("served");
    let old = noise(BYTES, 20);
    fs::write(served.join("file"), &old).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--immutable"]);
    pull(&home, &mount.path("file"));
    wait_until_closed(&mount, "file");
    let mapped = Mapped::new(&open_lent(&mount, "file"));
    signal(mount.pid(), rustix::process::Signal::KILL);
    run(Command::new("umount").arg("-l").arg(mount.leave()));
    same(&mapped.read(), &old);

    let mount = Mount::start(&home, &serve, "mnt");
    let mut options = File::options();
    let options = options.read(true).write(true);
    let file = options.open(mount.path("file")).unwrap();
    let pulled = mount.status()["pulled_bytes"].as_u64().unwrap();
    assert!(pulled < SMALL, "the copy is taken up: {pulled}");
    let mut new = old.clone();
    new[1 << 20..][..5].copy_from_slice(b"12345");
    file.write_all_at(b"12345", 1 << 20).unwrap();
    same(&read(&file), &new);
    file.sync_all().unwrap();
    same(&fs::read(served.join("file")).unwrap(), &new);
    same(&mapped.read(), &old);
}
