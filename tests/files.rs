//! Files on a mount behave as files: mappings of both kinds, programs run from them, every way to open,
//! holes, sizes that change under a mapping, directories.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, bash, has, noise, run, wait_until};
use rustix::fs::{Mode, OFlags, SeekFrom};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// Opens with the flags of open(2).
fn open(path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map(File::from)
}

#[test]
fn a_shared_mapping_reads_and_writes() {
    let home = Home::new();
    let served = home.folder("served");
    let bytes = noise(3 * 4096 + 100, 1);
    fs::write(served.join("file"), &bytes).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let Some(mut hands) = Hands::new("a_shared_mapping_reads_and_writes") else {
        return;
    };
    let path = mount.path("file");
    hands.make(&format!("f = os.open({path:?}, os.O_RDWR)"));
    hands.make("m = mmap.mmap(f, 0)");
    assert_eq!(
        hands.make("len(m), m[5000]"),
        format!("({}, {})", bytes.len(), bytes[5000])
    );
    hands.make("m[5000:5004] = b'four'");
    // Seen at once through every other way in.
    assert_eq!(&fs::read(&path).unwrap()[5000..5004], b"four");
    assert_eq!(hands.make("os.pread(f, 4, 5000)"), "b'four'");
    hands.make("os.pwrite(f, b'five5', 9000)");
    assert_eq!(hands.make("m[9000:9005]"), "b'five5'");
    hands.make("m.flush()");
    let mut expected = bytes;
    expected[5000..5004].copy_from_slice(b"four");
    expected[9000..9005].copy_from_slice(b"five5");
    assert!(fs::read(served.join("file")).unwrap() == expected);
}

#[test]
fn a_store_through_a_mapping_leaves_by_itself() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![0; 1 << 20]).unwrap();
    let serve = Serve::start(&home, &served);
    let options = ["--push-interval", "100ms"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let Some(mut hands) = Hands::new("a_store_through_a_mapping_leaves_by_itself") else {
        return;
    };
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
    hands.make("m = mmap.mmap(f, 0)");
    for round in 1..5u8 {
        hands.make(&format!("m[777777] = {round}"));
        wait_until("the store has arrived", || {
            fs::read(served.join("file")).unwrap()[777_777] == round
        });
    }
}

#[test]
fn a_private_mapping_keeps_to_itself() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), [7; 8192]).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let Some(mut hands) = Hands::new("a_private_mapping_keeps_to_itself") else {
        return;
    };
    let path = mount.path("file");
    hands.make(&format!("f = os.open({path:?}, os.O_RDONLY)"));
    hands.make("m = mmap.mmap(f, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ|mmap.PROT_WRITE)");
    hands.make("m[4096:4100] = b'mine'");
    assert_eq!(hands.make("m[4096:4101]"), r"b'mine\x07'");
    assert!(fs::read(&path).unwrap() == [7; 8192]);
    drop(hands);
    mount.unmount();
    assert!(fs::read(served.join("file")).unwrap() == [7; 8192]);
}

#[test]
fn programs_run_from_the_mount() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let program = mount.path("echo");
    fs::copy("/bin/echo", &program).unwrap();
    assert_eq!(run(Command::new(&program).arg("hello")), "hello\n");
    fs::write(mount.path("script"), "#!/bin/sh\necho \"script $1\"\n").unwrap();
    fs::set_permissions(mount.path("script"), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(
        run(Command::new(mount.path("script")).arg("runs")),
        "script runs\n"
    );
    assert_eq!(
        run(Command::new(served.join("script")).arg("too")),
        "script too\n"
    );
}

#[test]
fn every_way_to_open() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let path = mount.path("file");
    let content = || fs::read(&path).unwrap();

    let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    open(&path, new).unwrap().write_all(b"one").unwrap();
    assert_eq!(open(&path, new).err(), Some(rustix::io::Errno::EXIST));

    let mut first = OpenOptions::new().append(true).open(&path).unwrap();
    let mut second = OpenOptions::new().append(true).open(&path).unwrap();
    first.write_all(b",two").unwrap();
    second.write_all(b",three").unwrap();
    first.write_all(b",four").unwrap();
    assert_eq!(content(), b"one,two,three,four");

    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    assert_eq!(content(), b"");
    assert_eq!(fs::metadata(served.join("file")).unwrap().len(), 0);

    let dir = OFlags::DIRECTORY | OFlags::RDONLY;
    assert_eq!(open(&path, dir).err(), Some(rustix::io::Errno::NOTDIR));
    std::os::unix::fs::symlink("file", mount.path("link")).unwrap();
    let nofollow = OFlags::NOFOLLOW | OFlags::RDONLY;
    assert_eq!(
        open(&mount.path("link"), nofollow).err(),
        Some(rustix::io::Errno::LOOP)
    );
    assert_eq!(
        open(&mount.path("none"), OFlags::RDONLY).err(),
        Some(rustix::io::Errno::NOENT)
    );
}

#[test]
fn a_file_without_a_name_lives_on() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise(1 << 20, 2)).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .open(mount.path("file"))
        .unwrap();
    fs::remove_file(mount.path("file")).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == noise(1 << 20, 2));
    file.write_at(b"still here", 1 << 20).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), (1 << 20) + 10);
    file.set_len(5).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    assert_eq!(fs::read_dir(&served).unwrap().count(), 0);
}

#[test]
fn direct_io() {
    if !has("direct_io", "dd") {
        return;
    }
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    fs::write(home.path("noise"), noise(5 << 20, 3)).unwrap();
    bash(
        mount.point(),
        "dd if=../noise of=direct bs=1M oflag=direct status=none
         dd if=direct of=../back bs=64K iflag=direct status=none
         cmp ../noise ../back
         dd if=../noise of=synced bs=100K conv=fsync status=none",
    );
    // Both say that the bytes are over there when they have ended.
    bash(&served, "cmp ../noise direct; cmp ../noise synced");
}

#[test]
fn copy_file_range_copies() {
    let home = Home::new();
    let served = home.folder("served");
    let bytes = noise(300_000, 4);
    fs::write(served.join("from"), &bytes).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let from = File::open(mount.path("from")).unwrap();
    let to = File::create(mount.path("to")).unwrap();
    let (mut at, mut copied) = (1000u64, 0u64);
    while at < 200_000 {
        let more = 200_000 - at as usize;
        let n = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut copied), more);
        assert!(n.unwrap() > 0);
    }
    to.sync_all().unwrap();
    assert!(fs::read(served.join("to")).unwrap() == bytes[1000..200_000]);
    let size = fs::copy(mount.path("from"), mount.path("whole")).unwrap();
    assert_eq!(size, 300_000);
    assert!(fs::read(served.join("whole")).unwrap() == bytes);
}

#[test]
fn sparse_stays_sparse() {
    let home = Home::new();
    let served = home.folder("served");
    let far = 1u64 << 40;
    let file = File::create(served.join("sparse")).unwrap();
    file.write_all_at(b"data", far).unwrap();
    file.set_len(far + (1 << 20)).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");

    let file = File::open(mount.path("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), far + (1 << 20));
    assert!(file.metadata().unwrap().blocks() < 1000);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(far));
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(far)).unwrap();
    assert!((far + 4..far + (1 << 17)).contains(&hole), "hole at {hole}");
    let mut bytes = [1; 8192];
    file.read_exact_at(&mut bytes, far - 4096).unwrap();
    assert!(bytes[..4096] == [0; 4096] && bytes[4096..4100] == *b"data");

    // And the other way.
    let file = File::create(mount.path("new")).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"tail", (1 << 30) - 4).unwrap();
    file.sync_all().unwrap();
    let there = fs::metadata(served.join("new")).unwrap();
    assert!(
        there.len() == 1 << 30 && there.blocks() < 1000,
        "{} blocks",
        there.blocks()
    );
    bash(
        mount.point(),
        "truncate -s 64M ../holes
         printf x | dd of=../holes bs=1 seek=40M conv=notrunc status=none
         cp --sparse=always ../holes copied
         cmp ../holes copied
         cp --sparse=always copied ../back
         cmp ../holes ../back",
    );
    let blocks = |path| fs::metadata(path).unwrap().blocks();
    assert!(blocks(served.join("copied")) < 1000 && blocks(home.path("back")) < 1000);
}

#[test]
fn holes_are_punched() {
    let home = Home::new();
    let served = home.folder("served");
    let bytes = noise(1 << 20, 5);
    fs::write(served.join("file"), &bytes).unwrap();
    let before = fs::metadata(served.join("file")).unwrap().blocks();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.path("file"))
        .unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 100_000, 500_000).unwrap();
    let mut expected = bytes;
    expected[100_000..600_000].fill(0);
    assert!(fs::read(mount.path("file")).unwrap() == expected);
    assert!(fs::read(served.join("file")).unwrap() == expected);
    let after = fs::metadata(served.join("file")).unwrap().blocks();
    assert!(
        after + 900 < before,
        "{before} blocks before, {after} after"
    );
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 1 << 20, 4096).unwrap();
    assert_eq!(
        fs::metadata(served.join("file")).unwrap().len(),
        (1 << 20) + 4096
    );
}

#[test]
fn a_file_that_grows_and_shrinks_while_it_is_mapped() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![1; 3 * 4096]).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let test = "a_file_that_grows_and_shrinks_while_it_is_mapped";
    let (Some(mut hands), Some(mut doomed)) = (Hands::new(test), Hands::new(test)) else {
        return;
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.path("file"))
        .unwrap();
    for hands in [&mut hands, &mut doomed] {
        hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
        hands.make("m = mmap.mmap(f, 12288)");
        assert_eq!(hands.make("m[12287]"), "1");
    }
    file.set_len(5000).unwrap();
    assert_eq!(
        hands.make("os.fstat(f).st_size, m[4999], m[5000], m[8191]"),
        "(5000, 1, 0, 0)"
    );
    let ended = doomed.try_do("m[8192]").unwrap_err();
    assert!(ended.contains("signal: 7"), "{ended}"); // SIGBUS
    file.set_len(3 * 4096).unwrap();
    assert_eq!(
        hands.make("m[4999], m[5000], m[8192], m[12287]"),
        "(1, 0, 0, 0)"
    );
    hands.make("m[12287] = 9");
    hands.make("m.flush()");
    let mut expected = vec![0; 3 * 4096];
    expected[..5000].fill(1);
    expected[3 * 4096 - 1] = 9;
    assert!(fs::read(served.join("file")).unwrap() == expected);
}

#[test]
fn a_directory_of_ten_thousand() {
    let home = Home::new();
    let served = home.folder("served");
    for number in 0..10_000 {
        fs::write(served.join(format!("file-{number}")), number.to_string()).unwrap();
    }
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let mut names: Vec<String> = fs::read_dir(mount.point())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let number = name.strip_prefix("file-").unwrap();
            assert_eq!(entry.metadata().unwrap().len(), number.len() as u64);
            name
        })
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 10_000);
    fs::create_dir(mount.path("more")).unwrap();
    for number in 0..1000 {
        File::create(mount.path(&format!("more/{number}"))).unwrap();
    }
    assert_eq!(fs::read_dir(served.join("more")).unwrap().count(), 1000);
    fs::remove_dir_all(mount.path("more")).unwrap();
    assert!(!served.join("more").exists());
}

/// READDIRPLUS brings sizes, and the kernel cuts what it has of a file to the size it is told.
#[test]
fn a_listing_never_cuts_a_file_that_is_written() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let ended = AtomicBool::new(false);
    let ends = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let entries = fs::read_dir(mount.point()).unwrap();
                    entries.for_each(|entry| drop(entry.unwrap().metadata()));
                }
            });
        }
        let append = || -> io::Result<Vec<u64>> {
            let mut file = File::create(mount.path("file"))?;
            let append_once = |step: u64| {
                file.write_all(b"0123456789")?;
                if step.is_multiple_of(10) {
                    file.sync_data()?;
                }
                file.seek(io::SeekFrom::End(0))
            };
            (1..=500).map(append_once).collect()
        };
        let ends = append();
        ended.store(true, Ordering::Relaxed);
        ends
    });
    assert!(ends.unwrap().into_iter().eq((1..=500).map(|n| n * 10)));
    assert!(fs::read(served.join("file")).unwrap() == b"0123456789".repeat(500));
}

#[test]
fn attributes_links_and_names() {
    if !has("attributes_links_and_names", "setfattr") {
        return;
    }
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    bash(
        mount.point(),
        "mkdir -p a/b && echo text > a/b/file && ln a/b/file hard && ln -s a/b/file soft
         chmod 640 hard && touch -d '2001-02-03 04:05:06.123456789Z' hard
         mkfifo pipe && mv a/b/file a/moved && rmdir a/b
         setfattr -n user.colour -v blue hard
         test \"$(getfattr --only-values -n user.colour a/moved)\" = blue
         test \"$(stat -c %h hard)\" = 2
         ! cat soft 2>/dev/null",
    );
    bash(
        &served,
        "test \"$(readlink soft)\" = a/b/file && test -p pipe && test ! -e a/b
         test \"$(stat -c '%a %h %.9Y' hard)\" = '640 2 981173106.123456789'
         test \"$(getfattr --only-values -n user.colour hard)\" = blue
         test \"$(cat a/moved)\" = text",
    );
    for name in [
        "with space",
        "ünïcödé",
        "new\nline",
        "-dash",
        &"x".repeat(255),
    ] {
        fs::write(mount.path(name), name).unwrap();
        assert_eq!(fs::read_to_string(served.join(name)).unwrap(), name);
    }
    let too_long = fs::write(mount.path(&"x".repeat(256)), "").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(36)); // ENAMETOOLONG
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), "content").unwrap();
    let serve = Serve::start(&home, &served);
    let read_only = Serve::start_at(&home, &served, "127.0.0.1:0", &["--read-only"]);
    let mount = Mount::with(&home, &serve.source(), "a", &["--read-only"]);
    let of_read_only = Mount::start(&home, &read_only, "b");
    for mount in [&mount, &of_read_only] {
        assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content");
        let refused = |error: std::io::Error| error.raw_os_error() == Some(30); // EROFS
        assert!(refused(File::create(mount.path("new")).unwrap_err()));
        assert!(refused(fs::remove_file(mount.path("file")).unwrap_err()));
        let write = OpenOptions::new().write(true).open(mount.path("file"));
        assert!(refused(write.unwrap_err()));
    }
}

#[test]
fn a_store_in_memory_is_mounted() {
    let home = Home::new();
    let serve = Serve::start(&home, "mem://?size=64M");
    let mount = Mount::start(&home, &serve, "a");
    let other = Mount::start(&home, &serve, "b");
    let bytes = noise(10 << 20, 6);
    fs::write(mount.path("file"), &bytes).unwrap();
    assert!(fs::read(other.path("file")).unwrap() == bytes);
    let full = File::create(mount.path("full")).unwrap();
    let written = full.write_all_at(&vec![1; 64 << 20], 0);
    let error = written.and_then(|()| full.sync_all()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(28), "{error}"); // ENOSPC
    drop(full);
    fs::remove_file(mount.path("full")).unwrap();
    fs::write(mount.path("fits"), vec![1; 32 << 20]).unwrap();
    assert_eq!(fs::metadata(other.path("fits")).unwrap().len(), 32 << 20);
}
