//! What goes wrong gives one clear line and the right exit code or errno; nothing hangs, nothing is lost.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, complaint, is_root, noise, output, run, skip, wait_until};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Asserts that mounting fails with exit code 1 and one line that says all of `words`.
#[track_caller]
fn mount_fails(home: &Home, source: &str, point: &Path, options: &[&str], words: &[&str]) {
    let said = complaint(&mut Mount::command(home, source, point, options), 1);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("memfs: "), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
fn a_wrong_path() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), "").unwrap();
    let serve = Serve::start(&home, &served);
    let point = home.folder("mnt");
    let source = |path| format!("{}{path}", serve.source());
    mount_fails(
        &home,
        &source("none"),
        &point,
        &[],
        &["none", "No such file or directory"],
    );
    mount_fails(
        &home,
        &source("file"),
        &point,
        &[],
        &["file", "Not a directory"],
    );
    let none = home.path("no-such-point");
    mount_fails(
        &home,
        &serve.source(),
        &none,
        &[],
        &["no-such-point", "No such file"],
    );
    let file = served.join("file");
    mount_fails(
        &home,
        &serve.source(),
        &file,
        &[],
        &["file", "is not a directory"],
    );
    let said = complaint(home.memfs(["serve"]).arg(home.path("nowhere")), 1);
    assert!(
        said.contains("nowhere") && said.contains("No such file"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn an_unreachable_host() {
    let home = Home::new();
    let point = home.folder("mnt");
    // Nobody listens there: the socket is bound, and never answered from.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let source = format!("memfs://{address}/");
    mount_fails(&home, &source, &point, &[], &[&address.to_string()]);
    drop(silent);
    mount_fails(&home, &source, &point, &[], &[&address.to_string()]);
    let no_name = "memfs://no-such-host.invalid/";
    mount_fails(&home, no_name, &point, &[], &["no-such-host.invalid"]);
}

#[test]
fn an_unknown_key() {
    let home = Home::new();
    let stranger = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let point = stranger.folder("mnt");
    let source = serve.source();
    // The server is unknown to the stranger, and there is no terminal to ask on.
    mount_fails(&stranger, &source, &point, &[], &[&serve.key]);
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let options = ["--server-key", wrong];
    mount_fails(&stranger, &source, &point, &options, &[&serve.key]);
    // The stranger is unknown to the server.
    let options = ["--server-key", &serve.key];
    mount_fails(&stranger, &source, &point, &options, &["authorize"]);
    let key = run(&mut stranger.memfs(["key"]));
    run(home.memfs(["key", "authorize"]).arg(key.trim()));
    Mount::with(&stranger, &source, "mnt", &options).unmount();
    Mount::with(&stranger, &source, "mnt", &["--accept-new"]).unmount();
    Mount::with(&stranger, &source, "mnt", &[]).unmount();
}

#[test]
fn a_mount_point_in_use() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mount = Mount::start(&home, &serve, "mnt");
    mount_fails(&home, &serve.source(), mount.point(), &[], &["mnt"]);
    fs::write(mount.path("file"), "still there").unwrap();
    assert_eq!(
        fs::read_to_string(mount.path("file")).unwrap(),
        "still there"
    );
}

#[test]
fn a_busy_mount_is_not_unmounted() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let mut held = File::create(mount.path("held")).unwrap();
    let said = complaint(home.memfs(["umount"]).arg(mount.point()), 1);
    assert!(said.contains("mnt") && said.contains("busy"), "{said}");
    held.write_all(b"goes on").unwrap();
    drop(held);
    mount.unmount();
    assert_eq!(fs::read_to_string(served.join("held")).unwrap(), "goes on");
}

#[test]
fn a_served_directory_that_vanishes() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise(1 << 20, 1)).unwrap();
    fs::create_dir(served.join("sub")).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let held = File::open(mount.path("file")).unwrap();
    let mut bytes = [0; 10];
    held.read_exact_at(&mut bytes, 0).unwrap();
    fs::remove_dir_all(&served).unwrap();
    // Names are gone, what was open lives on.
    wait_until("its names are gone", || !mount.path("file").exists());
    let error = File::create(mount.path("new")).unwrap_err();
    assert!([2, 116].contains(&error.raw_os_error().unwrap()), "{error}"); // ENOENT, ESTALE
    let mut all = Vec::new();
    (&held).read_to_end(&mut all).unwrap();
    assert!(all == noise(1 << 20, 1));
}

#[test]
fn a_full_disk_on_the_serving_side() {
    let test = "a_full_disk_on_the_serving_side";
    if !is_root() {
        return skip(test, "only root can make a small file system");
    }
    let home = Home::new();
    let served = home.folder("served");
    let mut small = Command::new("mount");
    small.args(["-t", "tmpfs", "-o", "size=8M", "memfs-test"]);
    run(small.arg(&served));
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = output(Command::new("umount").arg("-l").arg(self.0));
        }
    }
    let _unmount = Unmount(&served);
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");

    fs::write(mount.path("kept"), noise(2 << 20, 1)).unwrap();
    let big = File::create(mount.path("big")).unwrap();
    let written = big
        .write_all_at(&noise(16 << 20, 2), 0)
        .and_then(|()| big.sync_all());
    assert_eq!(written.unwrap_err().raw_os_error(), Some(28)); // ENOSPC
    // What was there is there, and with room again the same file can be written.
    assert!(fs::read(mount.path("kept")).unwrap() == noise(2 << 20, 1));
    big.set_len(0).unwrap();
    big.write_all_at(b"small", 0).unwrap();
    big.sync_all().unwrap();
    assert_eq!(fs::read_to_string(served.join("big")).unwrap(), "small");
}

// While a server is gone, a close may wait for it; so does a program that is started meanwhile, for the
// copy it gets of every open file. These tests leave files to another process.

#[test]
fn soft_gives_an_error_in_time() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise(64 << 20, 1)).unwrap();
    let serve = Serve::start(&home, &served);
    let options = ["--soft", "5", "--pull", "demand"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let Some(mut hands) = Hands::new("soft_gives_an_error_in_time") else {
        return;
    };
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDONLY)",
        mount.path("file")
    ));
    hands.make("len(os.pread(f, 4096, 0))");
    serve.kill();
    let start = Instant::now();
    let error = hands.try_do("os.pread(f, 4096, 50 << 20)").unwrap_err();
    let waited = start.elapsed();
    assert_eq!(error, "EIO");
    assert!(waited >= Duration::from_secs(3), "only {waited:?}");
    // Twice what was asked for: the machine may be busy.
    assert!(waited <= Duration::from_secs(10), "{waited:?}");
    drop(hands);
    run(home.memfs(["umount", "--force"]).arg(mount.leave()));
}

#[test]
fn a_mount_outlives_its_server() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise(16 << 20, 1)).unwrap();
    let serve = Serve::start(&home, &served);
    let address = serve.address.clone();
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--pull", "demand"]);
    let test = "a_mount_outlives_its_server";
    let (Some(mut reader), Some(mut writer)) = (Hands::new(test), Hands::new(test)) else {
        return;
    };
    for hands in [&mut reader, &mut writer] {
        hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
        hands.make("len(os.pread(f, 100000, 0))");
    }
    writer.make("os.pwrite(f, b'stored before', 1000)");
    serve.kill();
    writer.begin("os.pwrite(f, b'stored meanwhile', 2000)");
    reader.begin("os.pread(f, 100000, 10 << 20).hex()");
    wait_until("the mount knows", || mount.status()["link"] != "up");
    let serve = Serve::start_at(&home, &served, &address, &[]);
    writer.answer().unwrap();
    let there: String = noise(16 << 20, 1)[10 << 20..][..100_000]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(reader.answer().unwrap() == format!("'{there}'"));
    writer.make("os.fsync(f)");
    fs::write(mount.path("new"), "new").unwrap();
    let there = fs::read(served.join("file")).unwrap();
    assert_eq!(&there[1000..1013], b"stored before");
    assert_eq!(&there[2000..2016], b"stored meanwhile");
    assert_eq!(fs::read_to_string(served.join("new")).unwrap(), "new");
    assert_eq!(mount.status()["link"], "up");
    drop((reader, writer));
    mount.unmount();
    serve.stop();
}

/// It tells its mounts that their connections are gone, instead of leaving them to find out.
#[test]
fn a_server_that_is_started_again_is_found_at_once() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let address = serve.address.clone();
    let log = home.path("log");
    let options = ["--log", log.to_str().unwrap()];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    fs::write(mount.path("before"), "before").unwrap();
    serve.kill();
    let serve = Serve::start_at(&home, &served, &address, &[]);
    fs::write(mount.path("after"), "after").unwrap();
    assert_eq!(fs::read_to_string(served.join("after")).unwrap(), "after");
    let said = fs::read_to_string(log).unwrap();
    // By the server, or by its machine before the server was there again.
    let told = ["reset by peer", "nobody listens there any more"];
    let lost = |why: &&str| said.contains(&format!("link lost ({why})"));
    assert!(told.iter().any(lost), "{said}");
    mount.unmount();
    serve.stop();
}

/// What is present is read and written without the server, until the lease runs out.
#[test]
fn what_is_present_needs_no_server() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise(1 << 20, 1)).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--soft", "1"]);
    let Some(mut hands) = Hands::new("what_is_present_needs_no_server") else {
        return;
    };
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
    hands.make("len(os.pread(f, 1 << 20, 0))");
    serve.kill();
    hands.make("len(os.pread(f, 1 << 20, 0))");
    hands.make("os.pwrite(f, b'stored', 5000)");
    assert_eq!(hands.make("os.pread(f, 6, 5000)"), "b'stored'");
    assert_eq!(hands.try_do("os.fsync(f)").unwrap_err(), "EIO");
    drop(hands);
    let said = complaint(home.memfs(["umount", "--force"]).arg(mount.leave()), 1);
    assert!(
        said.contains("not pushed") && said.contains("file"),
        "{said}"
    );
}

#[test]
fn a_server_asked_to_end_ends() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mount = Mount::start(&home, &serve, "mnt");
    fs::write(mount.path("file"), "content").unwrap();
    serve.stop();
    run(home.memfs(["umount", "--force"]).arg(mount.leave()));
}
