//! As fsx does it on one mount, but on two in turn: under a lock one of them reads, writes or cuts a file at random, by
//! calls and through a mapping, then lets go of it, and the next one has to see every byte of that.
//!
//! Nothing is ever synced or closed: the lock alone makes what one did seen by the other. `MEMFS_FSX_OPS` sets the
//! operations, ten times as many as there are made; `MEMFS_FSX_SEED` makes the same ones as a run that printed it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where anything fails"
)]

mod common;

use common::dice::{Dice, seed, variable};
use common::{Home, Mount, Serve, noise};
use memfs::sys::MappedWords;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Operations, unless `MEMFS_FSX_OPS` says otherwise.
const OPS: u64 = 2000;
const LEN_MAX: u64 = 256 << 10;

/// A range that ends before `end`: mostly short, sometimes of any length. Start and length.
fn range(dice: &mut Dice, end: u64) -> (u64, u64) {
    let start = dice.below(end);
    let longest = [200, 10_000, end][dice.below(3) as usize];
    (start, 1 + dice.below(longest.min(end - start)))
}

/// The file on one mount.
struct Side {
    file: File,
    words: MappedWords,
}

impl Side {
    /// To be made while the file is as long as it can be: so much is mapped.
    fn open(path: &Path) -> Side {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Side {
            file: file.unwrap(),
            words: MappedWords::open(path).unwrap(),
        }
    }

    fn read_mapped(&self, words: std::ops::Range<u64>) -> Vec<u8> {
        words
            .flat_map(|at| self.words.load(at).to_le_bytes())
            .collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(u64, u64),
    /// In words.
    ReadMapped(u64, u64),
    Write(u64, u64),
    WriteMapped(u64, u64),
    Resize(u64),
}

impl Op {
    fn random(dice: &mut Dice, len: u64) -> Op {
        let words = len / 8;
        let kind = match dice.below(100) {
            kind if words == 0 && kind < 90 => 40,
            kind => kind,
        };
        match kind {
            0..20 => {
                let (start, len) = range(dice, len);
                Op::Read(start, len)
            }
            20..40 => {
                let (start, len) = range(dice, words);
                Op::ReadMapped(start, len)
            }
            40..65 => {
                let (start, len) = range(dice, LEN_MAX);
                Op::Write(start, len)
            }
            65..90 => {
                let (start, len) = range(dice, words);
                Op::WriteMapped(start, len)
            }
            _ => Op::Resize(dice.below(LEN_MAX)),
        }
    }

    fn is_read(self) -> bool {
        matches!(self, Op::Read(..) | Op::ReadMapped(..))
    }

    /// Does it on one side, and to what should be there.
    fn carry_out(self, side: &Side, model: &mut Vec<u8>, seed: u64) {
        match self {
            Op::Read(start, len) => {
                let mut bytes = vec![0; len as usize];
                side.file.read_exact_at(&mut bytes, start).unwrap();
                compare(&bytes, &model[start as usize..][..len as usize], start);
            }
            Op::ReadMapped(start, len) => {
                let bytes = side.read_mapped(start..start + len);
                compare(
                    &bytes,
                    &model[start as usize * 8..][..bytes.len()],
                    start * 8,
                );
            }
            Op::Write(start, len) => {
                let bytes = noise(len as usize, seed);
                side.file.write_all_at(&bytes, start).unwrap();
                let (start, end) = (start as usize, (start + len) as usize);
                model.resize(model.len().max(end), 0);
                model[start..end].copy_from_slice(&bytes);
            }
            Op::WriteMapped(start, len) => {
                let bytes = noise(len as usize * 8, seed);
                for (at, word) in (start..).zip(bytes.chunks_exact(8)) {
                    side.words
                        .store(at, u64::from_le_bytes(word.try_into().unwrap()));
                }
                model[start as usize * 8..][..bytes.len()].copy_from_slice(&bytes);
            }
            Op::Resize(len) => {
                side.file.set_len(len).unwrap();
                model.resize(len as usize, 0);
            }
        }
    }
}

#[track_caller]
fn compare(found: &[u8], expected: &[u8], start: u64) {
    let differs = |&at: &usize| found.get(at) != expected.get(at);
    let wrong: Vec<usize> = (0..found.len().max(expected.len()))
        .filter(differs)
        .collect();
    if let (Some(&first), Some(&last)) = (wrong.first(), wrong.last()) {
        panic!(
            "{} bytes are wrong, from {} to {}",
            wrong.len(),
            start + first as u64,
            start + last as u64
        );
    }
}

#[test]
fn two_mounts_in_turn_see_each_others_every_byte() {
    let seed = seed("MEMFS_FSX_SEED");
    let ops = variable("MEMFS_FSX_OPS").map_or(OPS, |ops| ops / 10);
    let home = Home::in_memory();
    let served = home.folder("served");
    let mut model = vec![0; LEN_MAX as usize];
    fs::write(served.join("file"), &model).unwrap();
    let serve = Serve::start(&home, &served);
    let mounts = [
        Mount::with(&home, &serve.source(), "a", &["--push-interval", "20ms"]),
        Mount::with(&home, &serve.source(), "b", &["--push-interval", "1h"]),
    ];
    let sides = mounts
        .each_ref()
        .map(|mount| Side::open(&mount.path("file")));
    let mut dice = Dice(seed);
    let mut done = Vec::new();
    for number in 0..ops {
        let which = dice.below(2) as usize;
        let side = &sides[which];
        let op = Op::random(&mut dice, model.len() as u64);
        done.push((which, op));
        let how = match op.is_read() {
            true => FlockOperation::LockShared,
            false => FlockOperation::LockExclusive,
        };
        flock(&side.file, how).unwrap();
        let len = side.file.metadata().unwrap().len();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert_eq!(len, model.len() as u64, "the length");
            op.carry_out(side, &mut model, number);
        }));
        if outcome.is_err() {
            let last = &done[done.len().saturating_sub(12)..];
            panic!("operation {number} of seed {seed}, the last ones: {last:#?}");
        }
        flock(&side.file, FlockOperation::Unlock).unwrap();
    }
    drop(sides);
    for mount in mounts {
        assert!(fs::read(mount.path("file")).unwrap() == model);
        mount.unmount();
    }
    assert!(fs::read(served.join("file")).unwrap() == model);
}
