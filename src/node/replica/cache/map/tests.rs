//! What is recorded is found; what is damaged is told, or says nothing impossible.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const ID: FileId = FileId {
    dev: 1,
    ino: 2,
    born: 3,
};

fn base(seed: u64) -> Base {
    let time = |secs: u64| Time {
        secs: -(secs as i64),
        nanos: 999_999_999,
    };
    Base {
        stamp: Stamp {
            size: seed,
            mtime: time(seed + 1),
            ctime: time(seed + 2),
        },
        epoch: Epoch(seed + 3),
        boot: seed + 4,
        at: Tick(seed + 5),
        client: ClientId([seed as u8; 16]),
    }
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

/// A map with something in everything.
fn made(folder: &Path) -> (PathBuf, PageMap) {
    let file = folder.join("map");
    let mut map = PageMap::create(&file, ID).unwrap();
    map.set_base(base(1));
    map.set_path(&path("a/b"));
    map.set_base(base(2));
    map.set_copy_bytes(1 << 20);
    map.begin_store(PageRange::new(3, 5), 1 << 20).unwrap();
    let present = [PageRange::new(0, 4), PageRange::new(9, 10)]
        .into_iter()
        .collect();
    let dirty = [PageRange::new(3, 4)].into_iter().collect();
    map.note(PageRange::new(0, 4), &present, &dirty);
    map.note(PageRange::new(9, 10), &present, &dirty);
    (file, map)
}

#[test]
fn what_is_recorded_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (file, map) = made(folder.path());
    drop(map);
    let mut map = PageMap::open(&file).unwrap();
    assert_eq!(
        (map.id(), map.base(), map.size()),
        (ID, Some(base(2)), 1 << 20)
    );
    assert_eq!(
        (map.path(), map.copy_bytes()),
        (Some(&path("a/b")), 1 << 20)
    );
    let (present, dirty) = map.pages(1 << 20);
    let runs = |set: &PageSet| set.runs().collect::<Vec<_>>();
    assert_eq!(
        runs(&present),
        [PageRange::new(0, 4), PageRange::new(9, 10)]
    );
    // Page 4 was about to be stored, and is not there.
    assert_eq!(runs(&dirty), [PageRange::new(3, 4)]);
    assert!(map.has_dirty());
    assert_eq!(map.pages(4096).0.len(), 1);
    map.set_path(&path("x/".repeat(2000).trim_end_matches('/')));
    map.set_path(&path("c"));
    drop(map);
    let map = PageMap::open(&file).unwrap();
    assert_eq!((map.path(), map.base()), (Some(&path("c")), Some(base(2))));
}

#[test]
fn a_record_that_was_not_finished_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let (file, map) = made(folder.path());
    let newest = RECORDS_AT[map.record.1] * 8;
    drop(map);
    let raw = std::fs::File::options().write(true).open(&file).unwrap();
    raw.write_all_at(&[0xff], newest + 12).unwrap();
    let map = PageMap::open(&file).unwrap();
    assert_eq!(
        (map.base(), map.path()),
        (Some(base(1)), Some(&path("a/b")))
    );
}

#[test]
fn damaged_maps_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (file, map) = made(folder.path());
    drop(map);
    let good = std::fs::read(&file).unwrap();
    let told = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        PageMap::open(&file).unwrap_err().to_string()
    };
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(told(&[]), "it is too short");
    assert_eq!(told(&good[..32_767]), "it is too short");
    assert_eq!(told(&with(0, 0)), "it is no page map");
    assert_eq!(told(&with(8, 2)), "it is of another version");
    assert_eq!(told(&with(13, 9)), "it is of another version");
    assert_eq!(told(&with(17, 9)), "its checksum is wrong");
    assert_eq!(told(&with(71, 0x80)), "a size in it is impossible");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(
        PageMap::open(&file).unwrap_err().to_string(),
        "it is no file"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is written over a map, it is dropped, or is one that says nothing impossible.
    #[test]
    fn random_bytes_do_no_harm(
        patches in prop::collection::vec((0..49_152u64, prop::collection::vec(any::<u8>(), 1..64)), 0..8),
        len in prop::option::of(0..60_000u64),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (file, map) = made(folder.path());
        drop(map);
        let raw = std::fs::File::options().write(true).open(&file).unwrap();
        for (at, bytes) in patches {
            raw.write_all_at(&bytes, at).unwrap();
        }
        if let Some(len) = len {
            raw.set_len(len).unwrap();
        }
        if let Ok(mut map) = PageMap::open(&file) {
            prop_assert!(map.size() <= REGION_BYTES_MAX && map.copy_bytes() <= REGION_BYTES_MAX);
            let (present, dirty) = map.pages(1 << 30);
            prop_assert!(present.end() <= 1 << 18 && dirty.end() <= 1 << 18);
            for run in dirty.runs() {
                prop_assert!(present.contains_all(run));
            }
            // And it goes on from there.
            map.set_base(base(9));
            map.set_path(&path("y"));
            map.note(PageRange::new(0, u64::MAX), &present, &dirty);
            drop(map);
            let map = PageMap::open(&file).unwrap();
            prop_assert_eq!((map.base(), map.path()), (Some(base(9)), Some(&path("y"))));
            prop_assert_eq!(map.pages(1 << 30), (present, dirty));
        }
    }
}
