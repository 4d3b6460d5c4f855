//! File systems that are small, read-only, or made of several.

use super::*;
use crate::wire::Allocate;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// The whole suite on tmpfs, which differs from disk file systems in much.
mod on_tmpfs {
    use super::*;

    const TMPFS: &str = "/dev/shm";

    fn run_case(case: fn(&Fixture)) {
        match tempfile::tempdir_in(TMPFS) {
            Ok(dir) => case(&fixture_in(dir)),
            Err(error) => println!("skipped: {TMPFS}: {error}"),
        }
    }
    conformance::suite!(run by run_case);
}

/// A mount that goes when this does.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, and a line that tells why, where that cannot be.
    fn new(kind: &str, at: PathBuf, options: &str) -> Option<Mounted> {
        let options = std::ffi::CString::new(options).unwrap();
        fs::create_dir_all(&at).unwrap();
        match mount(kind, &at, kind, MountFlags::empty(), Some(&*options)) {
            Ok(()) => Some(Mounted(at)),
            Err(error) => {
                println!("skipped: {kind} cannot be mounted: {error}");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn full() {
    let (t, path) = here();
    let Some(mounted) = Mounted::new("tmpfs", path.join("small"), "size=1M,nr_inodes=20") else {
        return;
    };
    let store = Directory::open(&mounted.0).unwrap();
    let t = Fixture::keeping(store, t);
    let root = t.root();
    let node = t.file(&root, "file", b"");
    let file = t.open(&node);
    let block = vec![7; 100_000];
    let mut written = 0;
    let error = loop {
        match file.write_at(&block, written) {
            Ok(()) => written += block.len() as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::NOSPC);
    assert!((500_000..1 << 20).contains(&written), "{written}");
    let allocated = file.allocate(0, 4 << 20, Allocate::Extend).err();
    assert_eq!(allocated, Some(Errno::NOSPC));
    let bytes = t.content(&node);
    assert!(bytes.len() as u64 >= written && bytes.iter().all(|&b| b == 7 || b == 0));
    assert!(bytes[..written as usize].iter().all(|&b| b == 7));
    let stat = t.store.stat_fs().unwrap();
    assert_eq!(stat.blocks * u64::from(stat.block_bytes), 1 << 20);
    assert_eq!(stat.blocks_free, 0);

    file.allocate(0, 500_000, Allocate::PunchHole).unwrap();
    t.file(&root, "other", &block[..1000]);
    let make = |i: usize| {
        t.store
            .make(&root, &n(&i.to_string()), &Make::File, 0o600, by())
    };
    assert_eq!((0..100).find_map(|i| make(i).err()), Some(Errno::NOSPC));
}

#[test]
fn read_only() {
    let (t, path) = here();
    let Some(mounted) = Mounted::new("tmpfs", path.join("mounted"), "size=1M") else {
        return;
    };
    let t = Fixture::keeping(Directory::open(&mounted.0).unwrap(), t);
    let root = t.root();
    let node = t.file(&root, "file", b"content");
    mount_remount(&mounted.0, MountFlags::RDONLY, "").unwrap();
    let read_only = Some(Errno::ROFS);
    assert_eq!(t.content(&node), b"content");
    assert_eq!(t.store.open(&node, Access::Write).err(), read_only);
    let created = t.store.create(&root, &n("x"), 0o600, false, by());
    assert_eq!(created.err(), read_only);
    let made = t.store.make(&root, &n("x"), &Make::Fifo, 0o600, by());
    assert_eq!(made.err(), read_only);
    assert_eq!(t.store.remove(&root, &n("file"), false).err(), read_only);
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(t.store.set_attr(&node, &mode).err(), read_only);
    assert_eq!(t.store.link(&node, &root, &n("x")).err(), read_only);
}

#[test]
fn several_in_one_tree() {
    let (t, path) = here();
    let root = t.root();
    let Some(mounted) = Mounted::new("tmpfs", path.join("mounted"), "size=1M") else {
        return;
    };
    let inner = t.node(&root, "mounted");
    assert_ne!(inner.id.dev, root.id.dev);
    let file = t.file(&inner, "file", b"content");
    assert_eq!(file.id.dev, inner.id.dev);
    assert_eq!(t.content(&file), b"content");
    let listed = t.entries(&root, 10);
    assert_eq!(
        listed[0].attr.id, inner.id,
        "what is mounted, not what is below"
    );
    let replace = RenameMode::Replace;
    let moved = t
        .store
        .rename(&inner, &n("file"), &root, &n("file"), replace);
    assert_eq!(moved, Err(Errno::XDEV));
    assert_eq!(t.store.link(&file, &root, &n("x")).err(), Some(Errno::XDEV));
    assert_eq!(t.store.remove(&root, &n("mounted"), true), Err(Errno::BUSY));
    drop(mounted);
    t.assert_stale(&file);
}

/// An overlay numbers the entries of what it merges, so that a removal shifts those that follow.
#[test]
fn listings_of_merged_directories() {
    let (t, path) = here();
    let Some(layers) = Mounted::new("tmpfs", path.join("layers"), "size=16M") else {
        return;
    };
    let layer = |name: &str| layers.0.join(name);
    for (dir, first) in [("lower/many", 0), ("upper/many", 500)] {
        fs::create_dir_all(layer(dir)).unwrap();
        for i in first..first + 1000 {
            fs::write(layer(dir).join(format!("entry {i}")), "").unwrap();
        }
    }
    fs::create_dir(layer("work")).unwrap();
    let options = ["lower", "upper", "work"]
        .map(|dir| format!("{dir}dir={}", layer(dir).display()))
        .join(",");
    let Some(merged) = Mounted::new("overlay", layer("merged"), &options) else {
        return;
    };
    let t = Fixture::keeping(Directory::open(&merged.0).unwrap(), t);
    let dir = t.node(&t.root(), "many");
    let (mut seen, mut cursor) = (0, 0);
    loop {
        let entries = t.store.read_dir(&dir, cursor, 100).unwrap();
        let Some(last) = entries.last() else { break };
        cursor = last.cursor;
        seen += entries.len();
        for entry in &entries {
            t.store.remove(&dir, &entry.name, false).unwrap();
        }
    }
    assert_eq!(seen, 1500);
    t.store.remove(&t.root(), &n("many"), true).unwrap();
}
