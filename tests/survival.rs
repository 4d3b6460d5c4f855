//! Promise 4: what was written and not yet synced survives `kill -9` of the mount's process, and is pushed by the
//! next mount of the same source. On real mounts.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, noise, signal, wait_until};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

fn options(home: &Home) -> Vec<String> {
    let cache = home.path("cache").to_str().unwrap().to_owned();
    vec!["--cache".into(), cache]
}

/// A mount that pushes nothing unless it is asked to. What is to stay unpushed is written by [`Hands`]: this
/// process starts others for other tests, and each closes its copies of all open files, which pushes.
fn quiet_mount<'a>(home: &'a Home, source: &str, name: &str) -> Mount<'a> {
    let mut options = options(home);
    options.extend(["--push-interval", "1h"].map(String::from));
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Mount::with(home, source, name, &options)
}

fn mount<'a>(home: &'a Home, source: &str, name: &str) -> Mount<'a> {
    let options = options(home);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    Mount::with(home, source, name, &options)
}

/// Ends the mount's process where it is, and takes the mount away.
fn kill(home: &Home, mount: Mount) {
    signal(mount.pid(), Signal::KILL);
    common::run(home.memfs(["umount", "--force"]).arg(mount.leave()));
}

fn dirty_bytes(mount: &Mount) -> u64 {
    let status = mount.status();
    let regions = status["regions"].as_array().unwrap();
    regions
        .iter()
        .map(|region| region["dirty_bytes"].as_u64().unwrap())
        .sum()
}

/// Stored by write, and neither pushed nor synced.
#[test]
fn what_was_not_pushed_is_pushed_by_the_next_mount() {
    let test = "what_was_not_pushed_is_pushed_by_the_next_mount";
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    let home = Home::new();
    let served = home.folder("served");
    let mut expected = noise(4 << 20, 1);
    fs::write(served.join("file"), &expected).unwrap();
    let serve = Serve::start(&home, &served);
    let first = quiet_mount(&home, &serve.source(), "first");
    assert!(fs::read(first.path("file")).unwrap() == expected);
    let new = noise(1 << 20, 2);
    fs::write(home.path("new"), &new).unwrap();
    hands.make(&format!("new = open({:?}, 'rb').read()", home.path("new")));
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", first.path("file")));
    hands.make("os.pwrite(f, new, 1_000_001)");
    expected[1_000_001..][..1 << 20].copy_from_slice(&new);
    kill(&home, first);
    drop(hands);
    assert!(fs::read(served.join("file")).unwrap() != expected);

    let second = mount(&home, &serve.source(), "second");
    wait_until("it is pushed", || {
        fs::read(served.join("file")).unwrap() == expected
    });
    assert!(fs::read(second.path("file")).unwrap() == expected);
    assert_eq!(second.status()["conflicts"].as_array().unwrap().len(), 0);
    second.unmount();
    assert!(fs::read(served.join("file")).unwrap() == expected);
}

/// What was stored through a mapping has been handed over within the push interval, and then survives.
#[test]
fn what_was_stored_through_a_mapping_survives_as_well() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![0; 1 << 20]).unwrap();
    let serve = Serve::start(&home, &served);
    let first = mount(&home, &serve.source(), "first");
    let Some(mut hands) = Hands::new("what_was_stored_through_a_mapping_survives_as_well") else {
        return;
    };
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", first.path("file")));
    hands.make("m = mmap.mmap(f, 0)");
    hands.make("m[300000:300006] = b'mapped'");
    let handed_over = || {
        let status = first.status();
        let pushed = status["pushed_bytes"].as_u64().unwrap();
        pushed > 0 || dirty_bytes(&first) > 0
    };
    wait_until("the kernel has handed it over", handed_over);
    kill(&home, first);
    drop(hands);
    let second = mount(&home, &serve.source(), "second");
    let there = || fs::read(served.join("file")).unwrap()[300_000..300_006] == *b"mapped";
    wait_until("it is pushed", there);
    // Nothing of memfs itself keeps the mount from being unmounted, whatever it is doing.
    second.unmount();
}

/// The kernel hands over what is stored while the other side is silent as well, again and again.
#[test]
fn what_was_stored_through_a_mapping_while_the_server_is_silent_survives() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![0; 1 << 20]).unwrap();
    let serve = Serve::start(&home, &served);
    let first = mount(&home, &serve.source(), "first");
    let name = "what_was_stored_through_a_mapping_while_the_server_is_silent_survives";
    let Some(mut hands) = Hands::new(name) else {
        return;
    };
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", first.path("file")));
    hands.make("m = mmap.mmap(f, 0)");
    hands.make("m[:]"); // all of it is here
    signal(serve.pid(), Signal::STOP);
    for page in 1..4 {
        let at = page * 100_000;
        hands.make(&format!("m[{at}:{}] = b'mapped'", at + 6));
        wait_until("it is handed over", || dirty_bytes(&first) >= page * 4096);
    }
    kill(&home, first);
    drop(hands);
    signal(serve.pid(), Signal::CONT);
    let second = mount(&home, &serve.source(), "second");
    let there = || {
        let bytes = fs::read(served.join("file")).unwrap();
        (1..4).all(|page| bytes[page * 100_000..][..6] == *b"mapped")
    };
    wait_until("it is pushed", there);
    second.unmount();
}

/// Killed amid a stream of writes, pushes on their way: every write that returned is there in the end.
fn killed_amid_writes(source: impl Fn(&Home, &std::path::Path) -> (Option<Serve>, String)) {
    let home = Home::new();
    let served = home.folder("served");
    let (_serve, source) = source(&home, &served);
    let mut written = Vec::new();
    for round in 0..4u64 {
        let mnt = mount(&home, &source, &format!("mnt-{round}"));
        assert_eq!(
            mnt.status()["conflicts"].as_array().unwrap().len(),
            0,
            "{}",
            home.logs()
        );
        let path = mnt.path("file");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .unwrap();
        let part = noise(300_000, round);
        for _ in 0..10 + round * 7 {
            file.write_all_at(&part, written.len() as u64).unwrap();
            written.extend_from_slice(&part);
        }
        kill(&home, mnt);
    }
    let last = mount(&home, &source, "last");
    let here = fs::read(last.path("file")).unwrap();
    assert!(
        here == written,
        "{} of {} bytes\n{}",
        here.len(),
        written.len(),
        home.logs()
    );
    last.unmount();
    assert!(fs::read(served.join("file")).unwrap() == written);
}

#[test]
fn no_write_is_lost_where_the_server_lives_on() {
    killed_amid_writes(|home, served| {
        let serve = Serve::start(home, served);
        let source = serve.source();
        (Some(serve), source)
    });
}

/// The authority ends with the mount: nobody knows any more who has changed the file last.
#[test]
fn no_write_is_lost_where_the_authority_ends_as_well() {
    killed_amid_writes(|_, served| (None, served.to_str().unwrap().to_owned()));
}

/// Both have changed the file: the server's version stays, ours is listed, and is settled.
#[test]
fn conflicts_are_listed_and_settled() {
    let Some(mut hands) = Hands::new("conflicts_are_listed_and_settled") else {
        return;
    };
    let home = Home::new();
    let served = home.folder("served");
    for file in ["a", "b"] {
        fs::write(served.join(file), noise(100_000, 1)).unwrap();
    }
    let serve = Serve::start(&home, &served);
    let first = quiet_mount(&home, &serve.source(), "first");
    for file in ["a", "b"] {
        assert_eq!(fs::read(first.path(file)).unwrap().len(), 100_000);
    }
    for file in ["a", "b"] {
        hands.make(&format!("f = os.open({:?}, os.O_RDWR)", first.path(file)));
        hands.make("os.pwrite(f, b'ours', 50_000)");
    }
    kill(&home, first);
    drop(hands);
    for file in ["a", "b"] {
        fs::write(served.join(file), noise(100_000, 2)).unwrap();
    }

    let point = home.folder("second");
    let options = options(&home);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut command = Mount::command(&home, &serve.source(), &point, &options);
    let said = common::output(&mut command);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.contains("memfs conflicts"),
        "{said:?}\n{}",
        home.logs()
    );
    let conflicts =
        |arguments: &[&str]| common::run(home.memfs(["conflicts"]).args(arguments).arg(&point));
    assert!(fs::read(point.join("a")).unwrap() == noise(100_000, 2));
    let listed: serde_json::Value = serde_json::from_str(&conflicts(&["--json"])).unwrap();
    assert_eq!(
        (&listed[0]["path"], &listed[1]["path"]),
        (&"a".into(), &"b".into()),
        "{said}\n{}",
        home.logs()
    );
    assert_eq!(conflicts(&[]).lines().count(), 2);
    conflicts(&["--keep-mine", "a"]);
    conflicts(&["--drop", "b"]);
    assert_eq!(conflicts(&[]), "");
    common::complaint(home.memfs(["conflicts", "--drop", "b"]).arg(&point), 1);
    let mut expected = noise(100_000, 2);
    assert!(fs::read(served.join("b")).unwrap() == expected);
    // Pages are what is kept: all of the one that was stored to.
    let page = 50_000 / 4096 * 4096;
    expected[page..page + 4096].copy_from_slice(&noise(100_000, 1)[page..page + 4096]);
    expected[50_000..50_004].copy_from_slice(b"ours");
    assert!(fs::read(served.join("a")).unwrap() == expected);
    common::run(home.memfs(["umount"]).arg(&point));
}
