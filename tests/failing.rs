//! The serving side is full, or its disk fails: the right error, by the next call that can tell; what was stored is kept
//! and pushed once that is possible; others go on. Real file systems, each with a real reason to fail.
//!
//! | what fails over there | by |
//! |---|---|
//! | room | a small tmpfs, and one with few inodes |
//! | quota | a group of btrfs |
//! | reading, and syncing | a mount of memfs itself that gives up on a server that is stopped |
//! | writing, once what was written is forgotten | ext4 in a file for which there is no room |

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::disks::Disk;
use common::hands::Hands;
use common::{Home, Mount, Serve, complaint, has, noise, run, wait_until};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: usize = 1 << 20;

/// A program with the bytes of `data` as `data`, and a file open as `f`.
fn hands(test: &str, home: &Home, path: &Path, data: &[u8]) -> Option<Hands> {
    let mut hands = Hands::new(test)?;
    fs::write(home.path("data"), data).unwrap();
    hands.make(&format!(
        "data = open({:?}, 'rb').read()",
        home.path("data")
    ));
    hands.make(&format!("path = {path:?}"));
    hands.make("f = os.open(path, os.O_RDWR | os.O_CREAT)");
    Some(hands)
}

/// What a read of the mount shows, by a program that opens the file for it.
fn shown(mount: &Mount, name: &str) -> Vec<u8> {
    fs::read(mount.path(name)).unwrap()
}

/// Stores `data` where it cannot be kept over there: the errors, and that nothing of it is lost here.
fn is_refused_and_kept(hands: &mut Hands, mount: &Mount, served: &Path, data: &[u8], errno: &str) {
    assert_eq!(hands.make("os.pwrite(f, data, 0)"), data.len().to_string());
    assert_eq!(hands.try_do("os.fsync(f)"), Err(errno.into()));
    assert_eq!(hands.make("os.pread(f, len(data), 0) == data"), "True");
    assert!(shown(mount, "file") == data);
    assert_eq!(
        fs::metadata(mount.path("file")).unwrap().len(),
        data.len() as u64
    );
    let listed = fs::read_dir(mount.point()).unwrap();
    let listed = listed.map(|entry| entry.unwrap().metadata().unwrap().len());
    assert!(listed.into_iter().any(|len| len == data.len() as u64));
    run(Command::new("cp").arg(mount.path("file")).arg("/dev/null")); // which looks for holes
    assert_eq!(
        hands.try_do("os.fsync(f)"),
        Err(errno.into()),
        "as long as it is so"
    );
    assert_eq!(hands.try_do("os.close(f)"), Err(errno.into()));
    hands.make("f = os.open(path, os.O_RDWR)");
    let region = mount.region("file");
    assert!(region["dirty_bytes"].as_u64().unwrap() > 0, "{region}");
    assert!(region["refused"].is_string(), "{region}");
    assert!(fs::read(served.join("file")).unwrap() != data);
}

#[test]
fn a_push_that_finds_no_room_is_kept_and_made_good() {
    let test = "a_push_that_finds_no_room_is_kept_and_made_good";
    let home = Home::new();
    let Some(disk) = Disk::small(test, &home, "disk", "size=8M") else {
        return;
    };
    let served = disk.path().join("served");
    fs::create_dir(&served).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    fs::write(mount.path("other"), "other").unwrap();
    let data = noise(4 * MIB, 1);
    let Some(mut hands) = hands(test, &home, &mount.path("file"), &data) else {
        return;
    };
    let filler = disk.fill(MIB as u64);
    is_refused_and_kept(&mut hands, &mount, &served, &data, "ENOSPC");
    // What needs no more room is not concerned.
    let other = OpenOptions::new().write(true).open(mount.path("other"));
    let other = other.unwrap();
    other.write_all_at(b"OTHER", 0).unwrap();
    other.sync_all().unwrap();
    assert_eq!(fs::read(served.join("other")).unwrap(), b"OTHER");
    fs::remove_file(filler).unwrap();
    wait_until("it is pushed by itself", || {
        fs::read(served.join("file")).unwrap() == data
    });
    hands.make("os.fsync(f)");
    wait_until("all of it", || mount.region("file")["dirty_bytes"] == 0);

    // Through a mapping, in a hole: the store takes room over there only when it is pushed.
    hands.make("os.ftruncate(f, len(data) + (2 << 20))");
    hands.make("m = mmap.mmap(f, 0)");
    let filler = disk.fill(0);
    hands.make("m[len(data):] = data[:2 << 20]");
    assert_eq!(hands.try_do("m.flush()"), Err("ENOSPC".into()));
    assert_eq!(hands.make("m[len(data):] == data[:2 << 20]"), "True");
    let whole = [&data[..], &data[..2 * MIB]].concat();
    assert!(shown(&mount, "file") == whole);
    fs::remove_file(filler).unwrap();
    hands.make("m.flush()");
    assert!(fs::read(served.join("file")).unwrap() == whole);
}

/// What could not be pushed is named by `umount`, and pushed by a later mount.
#[test]
fn what_is_refused_outlives_the_mount() {
    let test = "what_is_refused_outlives_the_mount";
    let home = Home::new();
    let Some(disk) = Disk::small(test, &home, "served", "size=8M") else {
        return;
    };
    let serve = Serve::start(&home, disk.path());
    let mount = Mount::start(&home, &serve, "mnt");
    let data = noise(4 * MIB, 1);
    let Some(mut hands) = hands(test, &home, &mount.path("file"), &data) else {
        return;
    };
    let filler = disk.fill(MIB as u64);
    hands.make("os.pwrite(f, data, 0)");
    assert_eq!(hands.try_do("os.close(f)"), Err("ENOSPC".into()));
    drop(hands);
    let said = complaint(home.memfs(["umount", "--force"]).arg(mount.leave()), 1);
    assert!(
        said.contains("file") && said.contains("No space left"),
        "{said}"
    );
    fs::remove_file(filler).unwrap();
    let mount = Mount::start(&home, &serve, "mnt");
    let served = disk.path().join("file");
    wait_until("it is pushed", || fs::read(&served).unwrap() == data);
    assert_eq!(mount.status()["conflicts"].as_array().unwrap().len(), 0);
    mount.unmount();
}

/// Who may not have more dirty is told why nothing of it goes, and does not wait for what may never be.
#[test]
fn who_writes_on_while_nothing_is_taken_is_told() {
    let test = "who_writes_on_while_nothing_is_taken_is_told";
    let home = Home::new();
    let Some(disk) = Disk::small(test, &home, "served", "size=16M") else {
        return;
    };
    let serve = Serve::start(&home, disk.path());
    // 4 MiB may be dirty then.
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--cache-size", "8M"]);
    let data = noise(64 << 10, 1);
    let Some(mut hands) = hands(test, &home, &mount.path("file"), &data) else {
        return;
    };
    let filler = disk.fill(MIB as u64);
    hands.make("at = 0");
    let all = "while at < 8 << 20: at += os.pwrite(f, data, at)";
    assert_eq!(hands.try_do(all), Err("ENOSPC".into()));
    assert!(hands.make("at").parse::<usize>().unwrap() >= 4 * MIB);
    assert_eq!(hands.try_do("os.pwrite(f, data, at)"), Err("ENOSPC".into()));
    fs::remove_file(filler).unwrap();
    hands.make(all);
    hands.make("os.fsync(f)");
    let expected = data.repeat(8 * MIB / data.len());
    assert!(fs::read(disk.path().join("file")).unwrap() == expected);
    assert!(shown(&mount, "file") == expected);
}

#[test]
fn names_that_find_no_room_are_refused_at_once() {
    let test = "names_that_find_no_room_are_refused_at_once";
    let home = Home::new();
    let Some(disk) = Disk::small(test, &home, "served", "size=8M,nr_inodes=20") else {
        return;
    };
    let serve = Serve::start(&home, disk.path());
    let mount = Mount::start(&home, &serve, "mnt");
    let made = (0..20).take_while(|n| File::create(mount.path(&format!("file-{n}"))).is_ok());
    let made = made.count();
    assert!((1..20).contains(&made), "{made}");
    let full = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(28), "{error}"); // ENOSPC
    full(File::create(mount.path("one-more")).unwrap_err());
    full(fs::create_dir(mount.path("folder")).unwrap_err());
    full(std::os::unix::fs::symlink("a", mount.path("link")).unwrap_err());
    assert_eq!(fs::read_dir(mount.point()).unwrap().count(), made);
    fs::remove_file(mount.path("file-0")).unwrap();
    fs::create_dir(mount.path("folder")).unwrap();
}

#[test]
fn a_quota_that_is_used_up() {
    let test = "a_quota_that_is_used_up";
    if !has(test, "btrfs") {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    let mkfs = ["mkfs.btrfs", "--quiet"];
    let Some(disk) = Disk::in_file(test, &image, home.path("disk"), &mkfs) else {
        return;
    };
    let served = disk.path().join("served");
    let btrfs = |args: &[&str]| run(Command::new("btrfs").args(args).arg(&served));
    btrfs(&["--quiet", "subvolume", "create"]);
    btrfs(&["--quiet", "quota", "enable"]);
    btrfs(&["--quiet", "qgroup", "limit", "4M"]);
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let data = noise(8 * MIB, 1);
    let Some(mut hands) = hands(test, &home, &mount.path("file"), &data) else {
        return;
    };
    is_refused_and_kept(&mut hands, &mount, &served, &data, "EDQUOT");
    // Asked through the disk's own root: in what is full even this may find no room. 256 is the first subvolume.
    run(Command::new("btrfs")
        .args(["--quiet", "qgroup", "limit", "none", "0/256"])
        .arg(disk.path()));
    wait_until("it is pushed by itself", || {
        fs::read(served.join("file")).unwrap() == data
    });
    hands.make("os.fsync(f)");
    drop(hands);
    mount.unmount();
    serve.stop();
}

/// Part of what is served is on a disk that fails for a while: a mount of memfs whose server is stopped.
#[test]
fn a_disk_that_fails_to_read_and_to_sync() {
    let test = "a_disk_that_fails_to_read_and_to_sync";
    let home = Home::new();
    let behind = home.folder("behind");
    let content = noise(8 * MIB, 1);
    fs::write(behind.join("file"), &content).unwrap();
    let far = Serve::start(&home, &behind);
    let served = home.folder("served");
    fs::write(served.join("good"), &content).unwrap();
    let options = ["--soft", "1", "--pull", "demand", "--no-learn"];
    let bad = Mount::with(&home, &far.source(), "served/bad", &options);
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--pull", "demand"]);
    let path = mount.path("bad/file");
    let (Some(mut hands), Some(mut mapped)) = (hands(test, &home, &path, b"new"), Hands::new(test))
    else {
        return;
    };
    mapped.make(&format!(
        "f = os.open({path:?}, os.O_RDWR); m = mmap.mmap(f, 0)"
    ));
    hands.make("m = mmap.mmap(f, 0)");
    assert_eq!(hands.make("os.pread(f, 1, 0)"), mapped.make("m[:1]"));
    let address = far.address.clone();
    far.kill();

    assert_eq!(
        hands.try_do("os.pread(f, 4096, 4 << 20)"),
        Err("EIO".into())
    );
    let ended = mapped.try_do("m[6 << 20]").unwrap_err();
    assert!(ended.contains("signal: 7"), "{ended}"); // SIGBUS
    hands.make("os.pwrite(f, data, 0)");
    assert_eq!(hands.try_do("os.fsync(f)"), Err("EIO".into()));
    assert_eq!(hands.make("os.pread(f, 3, 0)"), "b'new'");
    // Others are not concerned, neither reads nor stores.
    assert!(shown(&mount, "good") == content);
    let good = OpenOptions::new().write(true).open(mount.path("good"));
    let good = good.unwrap();
    good.write_all_at(b"stored", 0).unwrap();
    good.sync_all().unwrap();
    drop(good);

    let far = Serve::start_at(&home, &behind, &address, &[]);
    let reads = "os.pread(f, 8192, 4 << 20) == m[4 << 20:][:8192]";
    wait_until("it works again", || {
        hands.try_do(reads) == Ok("True".into())
    });
    wait_until("syncs as well", || hands.try_do("os.fsync(f)").is_ok());
    let expected = [b"new", &content[3..]].concat();
    assert!(fs::read(behind.join("file")).unwrap() == expected);
    assert!(shown(&mount, "bad/file") == expected);
    drop((hands, mapped));
    mount.unmount();
    serve.stop();
    bad.unmount();
    far.stop();
}

/// Where extents of a file are, in bytes of the disk it is on: start and length.
fn places(file: &Path) -> Vec<(u64, u64)> {
    let listed = run(Command::new("filefrag").args(["-b4096", "-v"]).arg(file));
    // `  0:        0..     255:      34816..     35071:    256:             last,eof`
    let extents = listed.lines().filter_map(|line| {
        let parts: Vec<&str> = line.split(':').collect();
        let start: u64 = parts.get(2)?.split("..").next()?.trim().parse().ok()?;
        let len: u64 = parts.get(3)?.trim().parse().ok()?;
        Some((start * 4096, len * 4096))
    });
    extents.collect()
}

/// A kernel that could not write pages to its disk says so at one fsync, and calls them clean from then on. What a mount
/// has pushed is not lost by that: it is pushed again.
#[test]
fn what_a_disk_failed_to_write_is_written_again() {
    let test = "what_a_disk_failed_to_write_is_written_again";
    if !has(test, "filefrag") {
        return;
    }
    let home = Home::new();
    let Some(below) = Disk::small(test, &home, "below", "size=32M") else {
        return;
    };
    let image = below.path().join("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mkfs = [
        "mkfs.ext4",
        "-q",
        "-b",
        "4096",
        "-O",
        "^has_journal",
        "-E",
        "nodiscard,lazy_itable_init=0",
    ];
    let Some(disk) = Disk::in_file(test, &image, home.path("served"), &mkfs) else {
        return;
    };
    let served = disk.path().join("file");
    fs::write(&served, noise(2 * MIB, 1)).unwrap();
    run(Command::new("sync").arg("-f").arg(disk.path()));
    let serve = Serve::start(&home, disk.path());
    let mount = Mount::start(&home, &serve, "mnt");
    let data = noise(2 * MIB, 2);
    let Some(mut hands) = hands(test, &home, &mount.path("file"), &data) else {
        return;
    };
    // No room below the blocks of the file, and nowhere else.
    let extents = places(&served);
    assert_eq!(
        extents.iter().map(|(_, len)| len).sum::<u64>(),
        2 * MIB as u64
    );
    for (start, len) in extents {
        let mut punch = Command::new("fallocate");
        punch.args(["-p", "-o", &start.to_string(), "-l", &len.to_string()]);
        run(punch.arg(&image));
    }
    let filler = below.fill(0);
    hands.make("os.pwrite(f, data, 0)");
    for _ in 0..3 {
        let errno = hands.try_do("os.fsync(f)").unwrap_err();
        assert!(["EIO", "ENOSPC"].contains(&&*errno), "{errno}");
    }
    assert!(shown(&mount, "file") == data);
    fs::remove_file(filler).unwrap();
    wait_until("it is synced", || hands.try_do("os.fsync(f)").is_ok());
    drop(hands);
    mount.unmount();
    serve.stop();
    // What is on the disk and not only in memory.
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    assert!(fs::read(&served).unwrap() == data);
}
