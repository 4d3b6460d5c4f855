//! Large and many: a file of a tebibyte, a hundred mounts of one server, a directory of very many files. What is
//! checked is that all is right and that nothing grows with what is not touched; how fast it is measures
//! the benchmark.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::{Home, Mount, Serve, noise, run, wait_until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const MIB: u64 = 1 << 20;
const TEBIBYTE: u64 = 1 << 40;
const PAGE: u64 = 4096;

/// A number from a line of `/proc/PID/status`; sizes in KiB.
fn of_process(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let words = line.unwrap().trim_start_matches(':').split_whitespace();
    words.clone().next().unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Bytes that the files of a folder with this ending take on disk.
fn allocated(folder: &Path, ending: &str) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        if metadata.is_dir() {
            total += allocated(&path, ending);
        } else if path.extension().is_some_and(|found| found == ending) {
            total += metadata.blocks() * 512;
        }
    }
    total
}

#[test]
fn a_tebibyte_costs_what_is_touched() {
    const TOUCHES: usize = 1000;
    let home = Home::new();
    let served = File::create(home.folder("served").join("file")).unwrap();
    served.set_len(TEBIBYTE).unwrap();
    // Every other place that will be touched holds something.
    let places = noise(TOUCHES * 8, 1);
    let places = places.as_chunks().0.iter().enumerate();
    let place = |word: &[u8; 8]| u64::from_le_bytes(*word) % (TEBIBYTE / PAGE) * PAGE;
    let places: Vec<(u64, u64)> = places
        .map(|(at, word)| (place(word), at as u64 % 2))
        .collect();
    let mut written = BTreeMap::new();
    for &(place, _) in places.iter().filter(|(_, written)| *written == 1) {
        let bytes = noise(PAGE as usize, place);
        served.write_all_at(&bytes, place).unwrap();
        written.insert(place, bytes);
    }
    drop(served);
    let serve = Serve::start(&home, home.path("served"));
    let mount = Mount::start(&home, &serve, "mnt");
    let pid = mount.pid();
    let (memory, open) = (of_process(pid, "RssAnon"), descriptors(pid));
    let file = File::options()
        .read(true)
        .write(true)
        .open(mount.path("file"))
        .unwrap();
    let mut page = vec![0; PAGE as usize];
    let zeroes = page.clone();
    for &(place, _) in &places {
        file.read_exact_at(&mut page, place).unwrap();
        assert!(
            &page == written.get(&place).unwrap_or(&zeroes),
            "at {place}"
        );
    }
    file.write_all_at(b"the end", TEBIBYTE - 7).unwrap();
    file.sync_all().unwrap();
    let there = File::open(home.path("served/file")).unwrap();
    let mut end = [0; 7];
    there.read_exact_at(&mut end, TEBIBYTE - 7).unwrap();
    assert_eq!(&end, b"the end");

    // A part of it, and a part with nothing in it, are brought in.
    for (from, to) in [("512G", "513G"), ("0", "64M")] {
        let mut pull = home.memfs(["pull", "--wait", "--from", from, "--to", to]);
        run(pull.arg(mount.path("file")));
    }
    let region = mount.region("file");
    assert_eq!(region["size"], TEBIBYTE);
    assert!(region["present_bytes"].as_u64().unwrap() >= 1024 * MIB + 64 * MIB);
    // Pages of the copy that are mapped go when the system wants them.
    let grown = of_process(pid, "RssAnon").saturating_sub(memory);
    eprintln!("memory grew by {grown} KiB");
    assert!(grown < 16 << 10, "by {grown} KiB");
    assert!(descriptors(pid) < open + 50);
    drop(file);
    mount.unmount();

    // What outlives the mount is as small, and is taken up.
    let cache = home.path("cache-of-mnt");
    let (map, copy) = (allocated(&cache, "map"), allocated(&cache, "copy"));
    eprintln!("the page map takes {map} bytes, the copy {copy}");
    assert!(map < 8 * MIB, "the page map takes {map} bytes");
    assert!(copy < 64 * MIB, "the copy takes {copy} bytes");
    let mount = Mount::start(&home, &serve, "mnt");
    let file = File::open(mount.path("file")).unwrap();
    for &(place, _) in &places {
        file.read_exact_at(&mut page, place).unwrap();
        assert!(
            &page == written.get(&place).unwrap_or(&zeroes),
            "at {place}"
        );
    }
    assert_eq!(mount.status()["pulled_bytes"], 0);
    drop(file);
    mount.unmount();
}

#[test]
fn a_hundred_mounts_of_one_server() {
    const MOUNTS: usize = 100;
    const AT_ONCE: usize = 8;
    let home = Home::in_memory();
    let bytes = noise(100_000, 2);
    fs::write(home.folder("served").join("file"), &bytes).unwrap();
    let serve = Serve::start(&home, home.path("served"));
    let before = (of_process(serve.pid(), "VmRSS"), descriptors(serve.pid()));
    let names: Vec<String> = (0..MOUNTS).map(|number| format!("mnt{number}")).collect();
    let mut mounts: Vec<Mount> = std::thread::scope(|scope| {
        let some = names.chunks(MOUNTS.div_ceil(AT_ONCE));
        let threads: Vec<_> = some
            .map(|names| {
                let start = |name: &String| {
                    let mount = Mount::start(&home, &serve, name);
                    assert!(fs::read(mount.path("file")).unwrap() == bytes);
                    mount
                };
                scope.spawn(move || names.iter().map(start).collect::<Vec<_>>())
            })
            .collect();
        let started = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        started.collect()
    });
    assert_eq!(mounts.len(), MOUNTS);
    let served = (of_process(serve.pid(), "VmRSS"), descriptors(serve.pid()));
    let pid = mounts[0].pid();
    let each = ["VmRSS", "RssAnon", "Threads"].map(|name| of_process(pid, name));
    eprintln!(
        "the server took {before:?} and takes {served:?} (KiB, descriptors); a mount {each:?}"
    );
    assert!(each[0] < 64 << 10 && each[2] < 32, "{each:?}");
    assert!(
        served.0 - before.0 < 200 << 10,
        "the server takes {served:?}"
    );

    // What one of them changes, all of them see, at once.
    let file = File::options()
        .write(true)
        .open(mounts[MOUNTS / 2].path("file"));
    let file = file.unwrap();
    file.write_all_at(b"changed", 50_000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let mut changed = bytes.clone();
    changed[50_000..50_007].copy_from_slice(b"changed");
    for mount in &mounts {
        assert!(
            fs::read(mount.path("file")).unwrap() == changed,
            "{:?}",
            mount.point()
        );
    }
    let some = MOUNTS.div_ceil(AT_ONCE);
    std::thread::scope(|scope| {
        while !mounts.is_empty() {
            let few = mounts.split_off(mounts.len().saturating_sub(some));
            scope.spawn(move || few.into_iter().for_each(Mount::unmount));
        }
    });
    wait_until("the server has let go of them", || {
        descriptors(serve.pid()) <= before.1 + 10
    });
}

#[test]
fn a_directory_of_very_many_files() {
    const FILES: usize = 20_000;
    let home = Home::in_memory();
    let folder = home.folder("served");
    for number in 0..FILES {
        File::create(folder.join(format!("file-{number:06}"))).unwrap();
    }
    let serve = Serve::start(&home, &folder);
    let mount = Mount::start(&home, &serve, "mnt");
    let list = || {
        let mut names = Vec::new();
        for entry in fs::read_dir(mount.point()).unwrap() {
            let entry = entry.unwrap();
            match entry.metadata() {
                Ok(metadata) => assert_eq!(metadata.len(), 0),
                // Removed since it was listed.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
            }
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        names
    };
    let names = list();
    assert_eq!(names.len(), FILES);
    assert!(
        names
            .iter()
            .enumerate()
            .all(|(at, name)| *name == format!("file-{at:06}"))
    );
    let pid = mount.pid();
    let memory = of_process(pid, "RssAnon");
    for _ in 0..3 {
        assert!(list() == names);
    }
    let grown = of_process(pid, "RssAnon").saturating_sub(memory);
    eprintln!("a mount of {FILES} files takes {memory} KiB, after three listings {grown} more");
    assert!(grown < 16 << 10, "by {grown} KiB with listings of the same");
    // One name less, one more.
    fs::remove_file(folder.join("file-000007")).unwrap();
    File::create(folder.join("zero")).unwrap();
    wait_until("the change was noticed", || {
        let now = list();
        now.len() == FILES && now[7] == "file-000008" && now[FILES - 1] == "zero"
    });
    mount.unmount();
}

/// As `ls -l` does: extended attributes of each file come with the listing, and are those of the moment.
#[test]
fn extended_attributes_of_very_many_files() {
    const FILES: usize = 5_000;
    const MARK: &str = "user.mark";
    let home = Home::in_memory();
    let folder = home.folder("served");
    let path = |folder: &Path, number: usize| folder.join(format!("file-{number:06}"));
    let set = |number: usize| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path(&folder, number), MARK, &number.to_le_bytes(), flags)
    };
    for number in 0..FILES {
        File::create(path(&folder, number)).unwrap();
    }
    if let Err(error) = (0..FILES).step_by(7).try_for_each(set) {
        return common::skip("extended_attributes_of_very_many_files", &error.to_string());
    }
    let serve = Serve::start(&home, &folder);
    let mount = Mount::start(&home, &serve, "mnt");
    let marked = || {
        let mut marked = Vec::new();
        for entry in fs::read_dir(mount.point()).unwrap() {
            let path = entry.unwrap().path();
            let mut value = [0; 8];
            match rustix::fs::lgetxattr(&path, MARK, &mut value) {
                Ok(_) => marked.push(usize::from_le_bytes(value)),
                Err(error) => assert_eq!(error, rustix::io::Errno::NODATA, "{path:?}"),
            }
        }
        marked.sort_unstable();
        marked
    };
    let mut expected: Vec<usize> = (0..FILES).step_by(7).collect();
    for _ in 0..3 {
        assert!(marked() == expected);
    }
    // Another program at the server takes one away and sets another.
    rustix::fs::removexattr(path(&folder, 7), MARK).unwrap();
    set(8).unwrap();
    expected[1] = 8;
    wait_until("the change was noticed", || marked() == expected);
    mount.unmount();
}
