//! Names that the kernel keeps above a mount: used without asking, and never longer than they are true.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, is_root, run, signal, skip, wait_until};
use rustix::process::Signal;
use std::collections::HashSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// Names are kept since Linux 6.16.
fn keeps_names() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next().and_then(|part| part.parse::<u32>().ok());
    (part().unwrap(), part().unwrap()) >= (6, 16)
}

#[test]
fn names_and_attributes_are_used_without_asking() {
    let name = "names_and_attributes_are_used_without_asking";
    if !keeps_names() {
        return skip(
            name,
            "the kernel is older than Linux 6.16 and keeps no names",
        );
    }
    let home = Home::new();
    let served = home.folder("served");
    fs::create_dir_all(served.join("folder/below")).unwrap();
    for file in 0..100 {
        fs::write(served.join(format!("folder/below/{file}")), "bytes").unwrap();
    }
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--keep-names"]);
    let look = {
        let below = mount.path("folder/below");
        move || {
            for file in 0..100 {
                assert_eq!(fs::metadata(below.join(file.to_string())).unwrap().len(), 5);
            }
            assert!(!below.join("absent").exists());
        }
    };
    // By a listing, and one by one what it has not told.
    assert_eq!(
        fs::read_dir(mount.path("folder/below")).unwrap().count(),
        100
    );
    look();
    look();
    signal(mount.pid(), Signal::STOP);
    let (tell, told) = mpsc::channel();
    let looking = std::thread::spawn(move || {
        look();
        tell.send(()).unwrap();
    });
    wait_until("the kernel answers by itself", || told.try_recv().is_ok());
    looking.join().unwrap();
    signal(mount.pid(), Signal::CONT);
}

/// Ends the others also where one has failed.
#[derive(Default)]
struct Ended(AtomicBool);

impl Ended {
    fn at_the_end(&self) -> impl Drop {
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        End(&self.0)
    }
}

#[test]
fn what_another_mount_does_is_seen_at_once_amid_listings() {
    amid_listings(&["--keep-names"]);
}

#[test]
fn the_same_where_names_are_not_kept() {
    amid_listings(&[]);
}

/// While programs list and look up without end on one mount, another one makes, renames, replaces, fills and
/// removes: the first knows as soon as each has returned.
fn amid_listings(options: &[&str]) {
    let home = Home::new();
    let served = home.folder("served");
    let dir = served.join("dir");
    fs::create_dir(&dir).unwrap();
    for file in 0..200 {
        fs::write(dir.join(format!("still-{file}")), "").unwrap();
    }
    let serve = Serve::start(&home, &served);
    let ours = Mount::with(&home, &serve.source(), "ours", options);
    let theirs = Mount::with(&home, &serve.source(), "theirs", options);
    let (here, there) = (ours.path("dir"), theirs.path("dir"));
    let ended = Ended::default();
    std::thread::scope(|scope| {
        let _end = ended.at_the_end();
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.0.load(Ordering::Relaxed) {
                    for entry in fs::read_dir(&here).unwrap() {
                        // It may be gone by now.
                        let _ = fs::metadata(entry.unwrap().path());
                    }
                }
            });
        }
        for round in 0..40u64 {
            let name = |what: &str| format!("{what}-{round}");
            assert!(!here.join(name("made")).exists());
            fs::write(there.join(name("made")), vec![b'x'; round as usize]).unwrap();
            let seen = fs::metadata(here.join(name("made"))).unwrap();
            assert_eq!(seen.len(), round);
            fs::rename(there.join(name("made")), there.join(name("moved"))).unwrap();
            assert!(!here.join(name("made")).exists());
            assert_eq!(fs::metadata(here.join(name("moved"))).unwrap().len(), round);
            fs::write(there.join(name("moved")), vec![b'y'; 1000]).unwrap();
            assert_eq!(fs::metadata(here.join(name("moved"))).unwrap().len(), 1000);
            // Replaced: the name stands for another file.
            fs::write(there.join(name("new")), "new").unwrap();
            fs::rename(there.join(name("new")), there.join(name("moved"))).unwrap();
            assert_eq!(fs::read(here.join(name("moved"))).unwrap(), b"new");
            fs::create_dir(there.join(name("folder"))).unwrap();
            fs::write(there.join(name("folder")).join("file"), "").unwrap();
            assert!(here.join(name("folder")).join("file").exists());
            fs::remove_dir_all(there.join(name("folder"))).unwrap();
            assert!(!here.join(name("folder")).exists());
            fs::remove_file(there.join(name("moved"))).unwrap();
            assert!(!here.join(name("moved")).exists());
        }
    });
    ours.unmount();
    theirs.unmount();
}

/// That names are taken back does not take a folder away from those who are in it.
#[test]
fn programs_stay_in_their_folders() {
    let Some(mut hands) = Hands::new("programs_stay_in_their_folders") else {
        return;
    };
    let home = Home::new();
    let served = home.folder("served");
    fs::create_dir_all(served.join("a/b")).unwrap();
    fs::write(served.join("a/b/file"), "bytes").unwrap();
    let serve = Serve::start(&home, &served);
    let ours = Mount::with(&home, &serve.source(), "ours", &["--keep-names"]);
    let theirs = Mount::start(&home, &serve, "theirs");
    hands.make(&format!("os.chdir({:?})", ours.path("a/b")));
    let at = |path: &str| format!("'{}'", ours.path(path).display());
    for round in 0..10 {
        fs::write(theirs.path(&format!("a/{round}")), "").unwrap();
        // The path is walked anew.
        assert_eq!(fs::read(ours.path("a/b/file")).unwrap(), b"bytes");
        assert_eq!(hands.make("os.getcwd()"), at("a/b"));
        assert_eq!(hands.make("os.stat('file').st_size"), "5");
        assert_eq!(hands.make(&format!("os.stat('../{round}').st_size")), "0");
    }
    fs::rename(theirs.path("a/b"), theirs.path("a/c")).unwrap();
    assert_eq!(fs::read(ours.path("a/c/file")).unwrap(), b"bytes");
    assert_eq!(hands.make("os.getcwd()"), at("a/c"));
    hands.make("os.chdir('/')");
}

/// Where names are not kept, what is mounted below stays mounted whatever others do.
#[test]
fn what_is_mounted_below_stays() {
    let name = "what_is_mounted_below_stays";
    if !is_root() {
        return skip(name, "mounting needs root");
    }
    let home = Home::new();
    let served = home.folder("served");
    fs::create_dir_all(served.join("a/b")).unwrap();
    fs::write(home.folder("other").join("file"), "other").unwrap();
    let serve = Serve::start(&home, &served);
    let ours = Mount::start(&home, &serve, "ours");
    let theirs = Mount::start(&home, &serve, "theirs");
    let point = ours.path("a/b");
    let mut mount = Command::new("mount");
    run(mount.arg("--bind").arg(home.path("other")).arg(&point));
    for round in 0..3 {
        fs::write(theirs.path(&format!("a/{round}")), "").unwrap();
        assert!(ours.path(&format!("a/{round}")).exists());
        assert_eq!(fs::read(point.join("file")).unwrap(), b"other");
    }
    run(Command::new("umount").arg(&point));
}

/// A listing that began before a name changed goes on with the old one: which does not count from there on.
#[test]
fn a_listing_from_before_a_change_is_not_kept() {
    let home = Home::new();
    let served = home.folder("served");
    let dir = served.join("dir");
    fs::create_dir(&dir).unwrap();
    for file in 0..2000 {
        fs::write(dir.join(format!("file-{file}")), "").unwrap();
    }
    let serve = Serve::start(&home, &served);
    let ours = Mount::with(&home, &serve.source(), "ours", &["--keep-names"]);
    let theirs = Mount::start(&home, &serve, "theirs");
    let (here, there) = (ours.path("dir"), theirs.path("dir"));
    let mut listing = fs::read_dir(&here).unwrap();
    let mut unseen: HashSet<_> = (0..2000).map(|file| format!("file-{file}")).collect();
    // Those of whom attributes were wanted have the kernel ask for attributes of the rest as well.
    for entry in listing.by_ref().take(300) {
        let entry = entry.unwrap();
        entry.metadata().unwrap();
        unseen.remove(entry.file_name().to_str().unwrap());
    }
    let unseen: HashSet<_> = unseen.into_iter().step_by(10).collect();
    for file in &unseen {
        fs::rename(there.join(file), there.join(format!("moved-{file}"))).unwrap();
    }
    for file in &unseen {
        fs::metadata(here.join(format!("moved-{file}"))).unwrap();
    }
    let of_before: Vec<_> = listing
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| unseen.contains(name.to_str().unwrap()))
        .collect();
    assert!(!of_before.is_empty(), "nothing was listed from before");
    for file in of_before {
        assert!(!here.join(&file).exists(), "{file:?} is there no more");
    }
}
