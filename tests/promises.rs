//! The promises of the design, one by one, on real mounts: reading what was written, two mounts of one
//! directory, crashes, changes made behind everybody's back.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, noise, signal, wait_until};
use rustix::process::Signal;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

/// Opens for reading and writing.
fn open(path: std::path::PathBuf) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

fn read_at(file: &File, len: usize, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Promise 1: read your writes, always, on one mount, by read, write and mapping alike.
#[test]
fn what_was_written_is_read() {
    let home = Home::new();
    let served = home.folder("served");
    let mut expected = noise(8 << 20, 1);
    fs::write(served.join("file"), &expected).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let Some(mut hands) = Hands::new("what_was_written_is_read") else {
        return;
    };
    let file = open(mount.path("file"));
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
    hands.make("m = mmap.mmap(f, 0)");
    // Small stores in absent and present pages, across their edges, while the rest still arrives.
    for round in 0..400usize {
        let at = (round * 104_729 * 7) % (expected.len() - 5000);
        let new = noise(1 + round * 11 % 4999, round as u64);
        expected[at..at + new.len()].copy_from_slice(&new);
        if round % 2 == 0 {
            file.write_all_at(&new, at as u64).unwrap();
            let (first, last) = (new[0], new[new.len() - 1]);
            let end = at + new.len() - 1;
            assert_eq!(
                hands.make(&format!("m[{at}], m[{end}]")),
                format!("({first}, {last})")
            );
        } else {
            hands.make(&format!(
                "m[{at}:{}] = {}",
                at + new.len(),
                python_bytes(&new)
            ));
            assert!(read_at(&file, new.len(), at as u64) == new, "round {round}");
        }
    }
    assert!(fs::read(mount.path("file")).unwrap() == expected);
    hands.make("m.flush()");
    file.sync_all().unwrap();
    assert!(fs::read(served.join("file")).unwrap() == expected);
}

fn python_bytes(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("bytes.fromhex('{hex}')")
}

/// Promise 2: after fsync, msync or close has returned on one mount, a read that starts later on any
/// other sees those bytes, whether it holds the file open, mapped, or opens it anew.
#[test]
fn what_was_synced_is_seen_by_others() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![0; 1 << 20]).unwrap();
    let serve = Serve::start(&home, &served);
    let (a, b) = (
        Mount::start(&home, &serve, "a"),
        Mount::start(&home, &serve, "b"),
    );
    let test = "what_was_synced_is_seen_by_others";
    let (Some(mut hands_a), Some(mut hands_b)) = (Hands::new(test), Hands::new(test)) else {
        return;
    };
    let (file_a, file_b) = (open(a.path("file")), open(b.path("file")));
    for (hands, mount) in [(&mut hands_a, &a), (&mut hands_b, &b)] {
        hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
        hands.make("m = mmap.mmap(f, 0)");
        hands.make("sum(m[i] for i in range(0, len(m), 512))"); // has every page in its page tables
    }
    for round in 1..=100u64 {
        let at = (round * 7919 * 97) % ((1 << 20) - 8);
        let value = round.to_le_bytes();
        let (mut from, mut to) = ((&file_a, &mut hands_a, &a), (&file_b, &mut hands_b, &b));
        if round % 2 == 0 {
            std::mem::swap(&mut from, &mut to);
        }
        match round % 3 {
            0 => {
                from.0.write_all_at(&value, at).unwrap();
                from.0.sync_all().unwrap();
            }
            1 => {
                from.1
                    .make(&format!("m[{at}:{}] = {}", at + 8, python_bytes(&value)));
                from.1.make("m.flush()");
            }
            _ => {
                let file = open(from.2.path("file"));
                file.write_all_at(&value, at).unwrap();
                drop(file);
            }
        }
        assert!(read_at(to.0, 8, at) == value, "round {round}: by read");
        let mapped = to.1.make(&format!("m[{at}:{}].hex()", at + 8));
        let expected: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(mapped, format!("'{expected}'"), "round {round}: by mapping");
        assert!(fs::read(to.2.path("file")).unwrap()[at as usize..][..8] == value);
        assert!(read_at(&open(served.join("file")), 8, at) == value);
    }
}

/// Promise 2, for sizes and names.
#[test]
fn what_is_made_is_seen_by_others() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let (a, b) = (
        Mount::start(&home, &serve, "a"),
        Mount::start(&home, &serve, "b"),
    );
    let names = |mount: &Mount| {
        let entries = fs::read_dir(mount.point()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for (round, (from, to)) in [(&a, &b), (&b, &a)]
        .into_iter()
        .cycle()
        .take(20)
        .enumerate()
    {
        let name = format!("file-{round}");
        assert!(!to.path(&name).exists());
        fs::write(from.path(&name), &name).unwrap();
        assert_eq!(fs::read_to_string(to.path(&name)).unwrap(), name);
        assert!(names(to).contains(&name.clone().into()));
        let mut file = OpenOptions::new()
            .append(true)
            .open(to.path(&name))
            .unwrap();
        file.write_all(b", more").unwrap();
        file.sync_all().unwrap();
        assert_eq!(
            fs::read_to_string(from.path(&name)).unwrap(),
            format!("{name}, more")
        );
        file.set_len(3).unwrap();
        assert_eq!(fs::read_to_string(from.path(&name)).unwrap(), "fil");
        let moved = format!("moved-{round}");
        fs::rename(from.path(&name), from.path(&moved)).unwrap();
        assert!(!to.path(&name).exists());
        assert_eq!(fs::read_to_string(to.path(&moved)).unwrap(), "fil");
        fs::remove_file(to.path(&moved)).unwrap();
        assert!(!from.path(&moved).exists());
        assert_eq!(names(&a), names(&b));
    }
}

/// Promise 2, when both write at once: each page is one of those that were written, and both mounts and
/// the authority agree on which.
#[test]
fn two_mounts_that_write_at_once_agree() {
    let home = Home::new();
    let served = home.folder("served");
    const PAGES: usize = 64;
    fs::write(served.join("file"), vec![0; PAGES * 4096]).unwrap();
    let serve = Serve::start(&home, &served);
    let (a, b) = (
        Mount::start(&home, &serve, "a"),
        Mount::start(&home, &serve, "b"),
    );
    std::thread::scope(|scope| {
        for (mount, mark) in [(&a, 1u8), (&b, 2)] {
            scope.spawn(move || {
                let file = open(mount.path("file"));
                for round in 0..200usize {
                    let page = [mark + (round % 100) as u8 * 2; 4096];
                    let at = (round * 37 + usize::from(mark)) % PAGES * 4096;
                    file.write_all_at(&page, at as u64).unwrap();
                    if round % 3 == 0 {
                        file.sync_all().unwrap();
                    }
                    let seen = read_at(&file, 4096, at as u64);
                    assert!(seen.iter().all(|byte| *byte == seen[0]), "a torn page");
                }
                file.sync_all().unwrap();
            });
        }
    });
    let truth = fs::read(served.join("file")).unwrap();
    for page in truth.chunks(4096) {
        assert!(
            page.iter().all(|byte| *byte == page[0]),
            "a page of two writers"
        );
    }
    for mount in [&a, &b] {
        assert!(fs::read(mount.path("file")).unwrap() == truth);
    }
}

/// Promise 3: after fsync has returned, the bytes survive the death of every process.
#[test]
fn what_was_synced_survives_death() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let Some(mut hands) = Hands::new("what_was_synced_survives_death") else {
        return;
    };
    let written = File::create_new(mount.path("written")).unwrap();
    let bytes = noise(3 << 20, 3);
    written.write_all_at(&bytes, 12_345).unwrap();
    written.sync_data().unwrap();
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDWR|os.O_CREAT)",
        mount.path("mapped")
    ));
    hands.make("os.ftruncate(f, 1 << 20)");
    hands.make("m = mmap.mmap(f, 0)");
    hands.make("m[100000:100006] = b'synced'");
    hands.make("m.flush()");
    signal(mount.pid(), Signal::KILL);
    serve.kill();
    let there = fs::read(served.join("written")).unwrap();
    assert!(there[..12_345].iter().all(|byte| *byte == 0) && there[12_345..] == bytes);
    assert_eq!(
        &fs::read(served.join("mapped")).unwrap()[100_000..100_006],
        b"synced"
    );
    drop((written, hands));
    let point = mount.leave();
    common::run(home.memfs(["umount", "--force"]).arg(point));
}

/// Promise 8: a short answer never shrinks a file. What reads while the server dies gets every byte, or
/// an error, and never an early end.
#[test]
fn a_read_is_whole_or_an_error() {
    let home = Home::new();
    let served = home.folder("served");
    let bytes = noise(64 << 20, 4);
    fs::write(served.join("file"), &bytes).unwrap();
    let serve = Serve::start(&home, &served);
    let options = ["--soft", "1", "--pull", "demand", "--no-compress"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let Some(mut hands) = Hands::new("a_read_is_whole_or_an_error") else {
        return;
    };
    hands.make(&format!(
        "f, at = os.open({:?}, os.O_RDONLY), 0",
        mount.path("file")
    ));
    hands.make(&format!(
        "truth = open({:?}, 'rb').read()",
        served.join("file")
    ));
    hands.make(
        r#"
def read(until):
    global at
    while at < until:
        got = os.pread(f, 100000, at)
        # The kernel gives what it has before the page that fails; then the error, and never an end.
        assert got and got == truth[at:at + len(got)], (at, len(got))
        at += len(got)
"#,
    );
    hands.make("read(5 << 20)");
    hands.begin("read(64 << 20)");
    serve.kill();
    assert_eq!(hands.answer().unwrap_err(), "EIO");
    let at: u64 = hands.make("at").parse().unwrap();
    assert!((5 << 20..64 << 20).contains(&at), "{at} bytes");
    drop(hands);
    common::run(home.memfs(["umount", "--force"]).arg(mount.leave()));
}

/// A program on the serving machine changes a file there: its mounts notice.
#[test]
fn local_changes_are_noticed() {
    let home = Home::new();
    let served = home.folder("served");
    fs::create_dir(served.join("sub")).unwrap();
    fs::write(served.join("sub/file"), "before").unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let read = |name| fs::read_to_string(mount.path(name)).unwrap_or_default();
    let held = File::open(mount.path("sub/file")).unwrap();
    assert_eq!(read("sub/file"), "before");
    assert_eq!(read_at(&held, 6, 0), b"before");

    let there = open(served.join("sub/file"));
    there.write_all_at(b"behind", 0).unwrap();
    wait_until("an open file shows the change", || {
        read_at(&held, 6, 0) == b"behind"
    });
    wait_until("a new open shows the change", || {
        read("sub/file") == "behind"
    });
    there.set_len(3).unwrap();
    wait_until("the size has changed", || read("sub/file") == "beh");

    fs::write(served.join("sub/new"), "new").unwrap();
    wait_until("a new name shows", || read("sub/new") == "new");
    fs::rename(served.join("sub/new"), served.join("sub/file")).unwrap();
    wait_until("a file has taken the place of another", || {
        read("sub/file") == "new"
    });
    // The two names are not told of together.
    wait_until("its old name is gone", || !mount.path("sub/new").exists());
    fs::remove_file(served.join("sub/file")).unwrap();
    wait_until("a name is gone", || !mount.path("sub/file").exists());
}

/// What is changed through a mapping on the serving machine is noticed at the next open, once the kernel
/// there has set the file's times (at msync at the latest).
#[test]
fn local_changes_through_mappings_are_noticed_at_open() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![b'.'; 8192]).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let Some(mut hands) = Hands::new("local_changes_through_mappings_are_noticed_at_open") else {
        return;
    };
    assert_eq!(fs::read(mount.path("file")).unwrap()[5000], b'.');
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDWR)",
        served.join("file")
    ));
    hands.make("m = mmap.mmap(f, 0)");
    hands.make("m[5000] = 33");
    hands.make("m.flush()");
    assert_eq!(fs::read(mount.path("file")).unwrap()[5000], 33);
}
