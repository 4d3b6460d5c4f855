//! Regular files: their bytes and their holes.

use super::*;

const MIB: u64 = 1 << 20;

pub(crate) fn bytes_come_back(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"");
    let file = t.open(&node);
    let mut expected = vec![0; 300_000];
    for (at, bytes) in [(0, 10), (5, 4096), (70_001, 100_000), (299_999, 1)] {
        let written: Vec<u8> = (0..bytes).map(|i| (i * 7 + at) as u8 | 1).collect();
        file.write_at(&written, at as u64).unwrap();
        expected[at..at + bytes].copy_from_slice(&written);
    }
    assert_eq!(file.attr().unwrap().size, 300_000);
    assert_eq!(t.content(&node), expected);

    let mut buf = [9; 100];
    assert_eq!(
        file.read_at(&mut buf, 299_950),
        Ok(50),
        "shorter at the end"
    );
    assert_eq!(buf[..50], expected[299_950..]);
    assert_eq!(buf[50..], [9; 50]);
    assert_eq!(file.read_at(&mut buf, 300_000), Ok(0));
    for beyond in [1 << 60, i64::MAX as u64, 1 << 63, u64::MAX] {
        assert_eq!(file.read_at(&mut buf, beyond), Ok(0));
    }
    assert_eq!(file.read_at(&mut [], 0), Ok(0));
    file.write_at(&[], 1 << 40).unwrap();
    assert_eq!(file.attr().unwrap().size, 300_000, "nothing was written");
    file.sync(true).unwrap();
    file.sync(false).unwrap();
}

pub(crate) fn handles_agree(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"content");
    let (one, two) = (t.open(&node), t.open(&node));
    let reader = t.store.open(&node, Access::Read).unwrap();
    one.write_at(b"CON", 0).unwrap();
    two.write_at(b"!", 7).unwrap();
    for file in [&one, &two, &reader] {
        assert_eq!(content(&**file), b"CONtent!");
        assert_eq!(file.attr().unwrap().size, 8);
    }
}

pub(crate) fn readers_do_not_write(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"content");
    let file = t.store.open(&node, Access::Read).unwrap();
    assert_eq!(file.write_at(b"x", 0), Err(Errno::BADF));
    assert_eq!(file.zero_at(0, 1), Err(Errno::BADF));
    let punched = file.allocate(0, 1, Allocate::PunchHole);
    assert_eq!(punched.err(), Some(Errno::BADF));
    assert_eq!(content(&*file), b"content");
}

pub(crate) fn only_regular_files_are_opened(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let mut others = Vec::new();
    if t.store.capabilities().symlinks {
        others.push(t.make(&root, "link", Make::Symlink(b"dir".to_vec())));
    }
    if t.store.capabilities().special_files {
        others.push(t.make(&root, "fifo", Make::Fifo));
        others.push(t.make(&root, "socket", Make::Socket));
    }
    for access in [Access::Read, Access::Write] {
        assert_eq!(t.store.open(&dir, access).err(), Some(Errno::ISDIR));
        for node in &others {
            let opened = t.store.open(node, access).err();
            assert_eq!(opened, Some(Errno::INVAL), "{node:?}");
        }
    }
    for node in &others {
        let (_, name) = node.path.split().unwrap();
        let created = t.store.create(&root, &name, 0o600, false, by());
        assert_eq!(created.err(), Some(Errno::EXIST), "{node:?}");
    }
}

pub(crate) fn too_far(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"content");
    let file = t.open(&node);
    for offset in [i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX] {
        assert_eq!(file.write_at(b"xyz", offset), Err(Errno::FBIG), "{offset}");
    }
    for end in [1 << 63, u64::MAX] {
        assert_eq!(file.zero_at(0, end), Err(Errno::FBIG), "{end}");
        let allocated = file.allocate(0, end, Allocate::Extend).err();
        assert_eq!(allocated, Some(Errno::FBIG), "{end}");
    }
    for offset in [7, 8, 1 << 63, u64::MAX] {
        assert_eq!(file.next_data(offset), Err(Errno::NXIO), "{offset}");
        assert_eq!(file.next_hole(offset), Err(Errno::NXIO), "{offset}");
    }
    assert_eq!(t.content(&node), b"content");
}

pub(crate) fn holes_stay_holes(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"");
    let file = t.open(&node);
    let size = SetAttr {
        size: Some(1 << 40),
        ..SetAttr::default()
    };
    file.set_attr(&size).unwrap();
    assert_eq!(file.next_data(0), Err(Errno::NXIO));
    assert_eq!(file.next_hole(0), Ok(0));
    assert_eq!(file.next_hole(12_345), Ok(12_345));

    file.write_at(&[1; 100], 8 * MIB).unwrap();
    file.write_at(&[2; 100], 1 << 39).unwrap();
    assert!(file.attr().unwrap().blocks * 512 < MIB, "sparse");
    // How finely holes are told is up to the store, within reason.
    let first = file.next_data(0).unwrap();
    assert!((7 * MIB..=8 * MIB).contains(&first), "{first}");
    assert_eq!(file.next_data(8 * MIB + 1), Ok(8 * MIB + 1));
    assert_eq!(file.next_hole(5), Ok(5));
    let end = file.next_hole(8 * MIB).unwrap();
    assert!((8 * MIB + 100..=9 * MIB).contains(&end), "{end}");
    let second = file.next_data(end).unwrap();
    assert!(((1 << 39) - MIB..=1 << 39).contains(&second), "{second}");
    let after = file.next_hole(second).unwrap();
    assert_eq!(file.next_data(after), Err(Errno::NXIO));
    let mut buf = [9; 300];
    assert_eq!(file.read_at(&mut buf, 8 * MIB - 100), Ok(300));
    assert_eq!(buf[..100], [0; 100]);
    assert_eq!(buf[100..200], [1; 100]);
    assert_eq!(buf[200..], [0; 100]);
}

pub(crate) fn data_ends_in_a_hole(t: &Fixture) {
    let file = t.open(&t.file(&t.root(), "file", &[1; 5000]));
    assert_eq!(file.next_data(0), Ok(0));
    assert_eq!(file.next_data(4999), Ok(4999));
    assert_eq!(file.next_hole(0), Ok(5000));
    assert_eq!(file.next_hole(4999), Ok(5000));
}

pub(crate) fn zeroes_keep_holes(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"");
    let file = t.open(&node);
    // Data at 1 and 5 MiB, long enough that a store may zero it by other means than writing.
    for at in [MIB, 5 * MIB] {
        file.write_at(&vec![1; MIB as usize], at).unwrap();
    }
    file.sync(false).unwrap();
    let before = file.attr().unwrap();
    file.zero_at(0, 8 * MIB).unwrap();
    let after = file.attr().unwrap();
    assert_eq!(after.size, 8 * MIB, "extended");
    assert_eq!(
        after.blocks, before.blocks,
        "neither more nor less allocated"
    );
    assert_eq!(t.content(&node), vec![0; 8 * MIB as usize]);
    for hole in [0, 3 * MIB, 7 * MIB] {
        assert_eq!(file.next_hole(hole), Ok(hole));
    }
}

pub(crate) fn zeroes_touch_nothing_else(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"");
    let file = t.open(&node);
    let size = 3 * MIB;
    for (start, end) in [
        (1, 2),
        (4095, 4097),
        (10_001, 10_001 + MIB),
        (MIB, 2 * MIB),
        (size - 1, size),
        (5, size - 5),
    ] {
        file.write_at(&vec![1; size as usize], 0).unwrap();
        file.zero_at(start, end).unwrap();
        let mut expected = vec![1; size as usize];
        expected[start as usize..end as usize].fill(0);
        assert!(t.content(&node) == expected, "{start}..{end}");
    }
}

pub(crate) fn allocation(t: &Fixture) {
    let node = t.file(&t.root(), "file", b"content");
    let file = t.open(&node);
    for (start, end) in [(5, 5), (6, 5), (u64::MAX, 0)] {
        let error = file.allocate(start, end, Allocate::Extend).err();
        assert_eq!(error, Some(Errno::INVAL), "{start}..{end}");
    }
    let kept = file.allocate(0, MIB, Allocate::KeepSize).unwrap();
    assert_eq!(kept.size, 7);
    assert!(kept.blocks * 512 >= MIB, "{kept:?}");
    let extended = file.allocate(MIB, 2 * MIB, Allocate::Extend).unwrap();
    assert_eq!(extended.size, 2 * MIB);
    assert!(extended.blocks * 512 >= 2 * MIB, "{extended:?}");
    assert_eq!(extended, file.attr().unwrap());

    file.write_at(&vec![1; 2 * MIB as usize], 0).unwrap();
    let punched = file.allocate(4096, MIB, Allocate::PunchHole).unwrap();
    assert_eq!(punched.size, 2 * MIB);
    assert!(punched.blocks * 512 < 3 * MIB / 2, "{punched:?}");
    assert_eq!(file.next_hole(0), Ok(4096));
    assert_eq!(file.next_data(4096), Ok(MIB));
    let beyond = file
        .allocate(3 * MIB, 4 * MIB, Allocate::PunchHole)
        .unwrap();
    assert_eq!(beyond.size, 2 * MIB);
    let mut expected = vec![1; 2 * MIB as usize];
    expected[4096..MIB as usize].fill(0);
    assert!(t.content(&node) == expected);
}

pub(crate) fn allocation_of_zeroes(t: &Fixture) {
    let node = t.file(&t.root(), "file", &[1; 100_000]);
    let file = t.open(&node);
    let kept = file.allocate(10, 200_000, Allocate::ZeroKeepSize);
    if kept.as_ref().err() == Some(&Errno::OPNOTSUPP) {
        println!(
            "skipped: {} has no FALLOC_FL_ZERO_RANGE",
            t.store.describe()
        );
        return;
    }
    assert_eq!(kept.unwrap().size, 100_000);
    let extended = file.allocate(50, 200_000, Allocate::ZeroExtend).unwrap();
    assert_eq!(extended.size, 200_000);
    let mut expected = vec![0; 200_000];
    expected[..10].fill(1);
    assert!(t.content(&node) == expected);
}

/// Random calls, against a vector of bytes. The numbers come from a fixed seed.
pub(crate) fn any_calls_in_any_order(t: &Fixture) {
    const SIZE_MAX: u64 = 300_000;
    let node = t.file(&t.root(), "file", b"");
    let file = t.open(&node);
    let mut model: Vec<u8> = Vec::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for round in 0..3000 {
        let start = random(SIZE_MAX);
        let longest = 1 << random(18);
        let end = (start + 1 + random(longest)).min(SIZE_MAX + 1);
        let range = start as usize..end as usize;
        let call = random(5);
        match call {
            0 | 1 => {
                let bytes = vec![random(255) as u8 + 1; range.len()];
                file.write_at(&bytes, start).unwrap();
                model.resize(model.len().max(range.end), 0);
                model[range].copy_from_slice(&bytes);
            }
            2 => {
                file.zero_at(start, end).unwrap();
                model.resize(model.len().max(range.end), 0);
                model[range].fill(0);
            }
            3 => {
                file.allocate(start, end, Allocate::PunchHole).unwrap();
                let len = model.len();
                model[range.start.min(len)..range.end.min(len)].fill(0);
            }
            _ => {
                let size = Some(start);
                let set = SetAttr {
                    size,
                    ..SetAttr::default()
                };
                file.set_attr(&set).unwrap();
                model.resize(range.start, 0);
            }
        }
        assert_eq!(file.attr().unwrap().size, model.len() as u64);
        assert!(content(&*file) == model, "round {round}, call {call}");
        if round % 100 == 0 {
            assert_holes_are_zeroes(&*file, &model);
        }
    }
}

fn assert_holes_are_zeroes(file: &dyn StoreFile, content: &[u8]) {
    let mut at = 0;
    while at < content.len() as u64 {
        let data = match file.next_data(at) {
            Ok(data) => data,
            Err(error) => {
                assert_eq!(error, Errno::NXIO);
                content.len() as u64
            }
        };
        assert!(content[at as usize..data as usize].iter().all(|&b| b == 0));
        if data == content.len() as u64 {
            return;
        }
        at = file.next_hole(data).unwrap();
        assert!(at > data);
    }
}
