//! A copy from before brings a file up to date that has changed in part: what is the same is found by hashes,
//! on real mounts. "Costs" are the bytes pulled and the bytes of hashes, as `memfs status` has them.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::{Home, Mount, Serve, noise, run, signal, wait_until};
use rustix::process::Signal;
use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const MIB: usize = 1 << 20;
const LEN: usize = 32 * MIB;
const PAGE: usize = 4096;

/// A served file of which a mount before had all.
struct World {
    serve: Serve,
    home: Home,
    /// What it holds.
    bytes: RefCell<Vec<u8>>,
}

impl World {
    fn new() -> World {
        let home = Home::new();
        let bytes = noise(LEN, 1);
        let file = home.folder("served").join("file");
        fs::write(file, &bytes).unwrap();
        let serve = Serve::start(&home, home.path("served"));
        let bytes = RefCell::new(bytes);
        let world = World { serve, home, bytes };
        let mount = world.mount(&[]);
        world.assert_read(&mount);
        mount.unmount();
        world
    }

    fn mount(&self, options: &[&str]) -> Mount<'_> {
        Mount::with(&self.home, &self.serve.source(), "mnt", options)
    }

    fn served(&self) -> PathBuf {
        self.home.path("served/file")
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let file = File::options().write(true).open(self.served()).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Changes 1 % of the pages, in a few bytes each; other ones for each seed.
    fn change(&self, seed: u64) {
        let places = noise(LEN / PAGE / 100 * 4, seed);
        for place in places.as_chunks().0 {
            let at = u32::from_le_bytes(*place) as usize % (LEN - 8);
            self.write(at, &seed.to_le_bytes());
        }
    }

    fn pull(&self, mount: &Mount) {
        run(self.home.memfs(["pull", "--wait"]).arg(mount.path("file")));
    }

    #[track_caller]
    fn assert_read(&self, mount: &Mount) {
        let read = fs::read(mount.path("file")).unwrap();
        let bytes = self.bytes.borrow();
        assert_eq!(read.len(), bytes.len());
        let differs = |at: &usize| read[*at] != bytes[*at];
        assert_eq!((0..read.len()).find(differs), None, "differs there");
    }
}

fn number(mount: &Mount, name: &str) -> u64 {
    mount.status()[name].as_u64().unwrap()
}

/// What it has cost so far, in per cent of the file.
fn cost(mount: &Mount) -> f64 {
    let status = mount.status();
    let number = |name: &str| status[name].as_u64().unwrap();
    let bytes = number("pulled_bytes") + number("hash_bytes");
    eprintln!(
        "pulled {}, hashes {}, confirmed {}",
        number("pulled_bytes"),
        number("hash_bytes"),
        number("confirmed_bytes")
    );
    bytes as f64 / LEN as f64 * 100.0
}

#[test]
fn a_hundredth_changed_costs_little_more_than_that() {
    let world = World::new();
    world.change(2);
    let mount = world.mount(&[]);
    world.pull(&mount);
    let pulled = cost(&mount);
    assert!(pulled < 1.5, "{pulled} %");
    assert!(number(&mount, "confirmed_bytes") > LEN as u64 / 100 * 98);
    world.assert_read(&mount);
    let read = cost(&mount);
    assert!(read < 1.5, "{read} % with all of it read");
    mount.unmount();
    // It is up to date now.
    let mount = world.mount(&[]);
    world.assert_read(&mount);
    assert_eq!(cost(&mount), 0.0);
    mount.unmount();
}

#[test]
fn one_who_reads_all_waits_for_the_comparison() {
    let world = World::new();
    for (seed, pull) in [(2, "background"), (3, "demand")] {
        world.change(seed);
        let mount = world.mount(&["--pull", pull]);
        world.assert_read(&mount);
        let cost = cost(&mount);
        assert!(cost < 2.0, "{cost} % with --pull {pull}");
        mount.unmount();
    }
}

#[test]
fn what_was_appended_or_cut_off_is_all_there_is_to_it() {
    let world = World::new();
    let added = noise(MIB / 8 + 77, 3);
    let file = File::options().append(true).open(world.served()).unwrap();
    std::io::Write::write_all(&mut &file, &added).unwrap();
    world.bytes.borrow_mut().extend(&added);
    let mount = world.mount(&[]);
    world.pull(&mount);
    world.assert_read(&mount);
    let appended = cost(&mount);
    assert!(appended < 1.0, "{appended} %");
    mount.unmount();

    for len in [LEN - 5000, LEN / 2 + 1, LEN / 2 + 9000] {
        let file = File::options().write(true).open(world.served()).unwrap();
        file.set_len(len as u64).unwrap();
        world.bytes.borrow_mut().resize(len, 0);
        let mount = world.mount(&[]);
        world.pull(&mount);
        world.assert_read(&mount);
        let cut = cost(&mount);
        assert!(cut < 0.2, "{cut} %");
        mount.unmount();
    }
}

/// Another program changes the file at the server while it is mounted here: what has changed is not known.
#[test]
fn what_others_change_meanwhile_is_compared() {
    let world = World::new();
    let mount = world.mount(&[]);
    world.assert_read(&mount);
    assert_eq!(cost(&mount), 0.0);
    world.change(2);
    wait_until("the change was noticed", || {
        mount.region("file")["present_bytes"] == 0
    });
    world.pull(&mount);
    world.assert_read(&mount);
    let cost = cost(&mount);
    assert!(cost < 2.0, "{cost} %");
    mount.unmount();
}

/// A process that ends in the midst of it leaves nothing that counts for what it is not.
/// Replaces the file by another one of the same name with the present bytes, as editors and rsync do.
fn replace(world: &World) {
    let new = world.home.path("served/new");
    fs::write(&new, &*world.bytes.borrow()).unwrap();
    fs::rename(&new, world.served()).unwrap();
}

#[test]
fn a_file_that_takes_the_place_of_another_inherits_its_copy() {
    let world = World::new();
    world.change(7);
    replace(&world);
    let mount = world.mount(&["--pull", "demand"]);
    world.pull(&mount);
    assert!(cost(&mount) < 2.0, "{}", cost(&mount));
    world.assert_read(&mount);
    // And again while it is mounted.
    let before = cost(&mount);
    world.change(8);
    replace(&world);
    wait_until("the other file is seen", || {
        let seen = fs::metadata(mount.path("file")).unwrap();
        seen.modified().unwrap() == fs::metadata(world.served()).unwrap().modified().unwrap()
    });
    world.pull(&mount);
    assert!(cost(&mount) - before < 2.0, "{}", cost(&mount));
    world.assert_read(&mount);
    mount.unmount();
}

#[test]
fn a_process_that_is_killed_meanwhile_mixes_nothing_up() {
    let world = World::new();
    for round in 0..4u64 {
        world.change(10 + round);
        for page in [0, 1, LEN / PAGE / 2].map(|page| page + round as usize) {
            world.write(page * PAGE, &noise(PAGE, 20 + round));
        }
        let mount = world.mount(&[]);
        let open = File::open(mount.path("file")).unwrap();
        let mut page = [0; PAGE];
        open.read_exact_at(&mut page, (LEN / 4) as u64).unwrap();
        wait_until("some of it was compared", || {
            number(&mount, "confirmed_bytes") >= round * 4 * MIB as u64
        });
        let pid = mount.pid();
        signal(pid, Signal::KILL);
        wait_until("it has ended", || {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
                || !fs::exists(format!("/proc/{pid}")).unwrap()
        });
        drop(open);
        run(world.home.memfs(["umount", "--force"]).arg(mount.leave()));
    }
    let mount = world.mount(&[]);
    world.pull(&mount);
    world.assert_read(&mount);
    let cost = cost(&mount);
    assert!(cost < 8.0, "{cost} %");
    mount.unmount();
}

/// What is old takes room, and goes like anything clean.
#[test]
fn old_pages_count_for_the_size_of_the_cache() {
    let world = World::new();
    world.change(2);
    let options = ["--cache-size", "16M"];
    let mount = world.mount(&options);
    world.assert_read(&mount);
    wait_until("there is room", || {
        number(&mount, "copy_bytes") <= 16 * MIB as u64
    });
    mount.unmount();
}
