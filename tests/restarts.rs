//! A server is started anew while requests are under way: those that had no answer are repeated to the new run, and
//! mean the same file there.

#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, noise, signal, wait_until};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

const FILES: usize = 10;
const BYTES: usize = 64 << 10;
const PAGE: usize = 4096;

/// What is done to a file `f`, and to what it holds, at a place of its own.
struct Deed {
    python: &'static str,
    change: fn(&mut Vec<u8>, usize),
}

const DEEDS: [Deed; 5] = [
    Deed {
        python: "fallocate(f, 3, at, 4096)", // punches a hole
        change: |bytes, at| bytes[at..at + PAGE].fill(0),
    },
    Deed {
        python: "fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        change: |_, _| {},
    },
    Deed {
        python: "os.pwrite(f, b'7' * 4096, at); os.fsync(f)",
        change: |bytes, at| bytes[at..at + PAGE].fill(b'7'),
    },
    Deed {
        python: "os.ftruncate(f, at)",
        change: |bytes, at| bytes.truncate(at),
    },
    Deed {
        python: "os.fchmod(f, 0o600)",
        change: |_, _| {},
    },
];
const LOCKS: usize = 1;
const MODES: usize = 4;

const FALLOCATE: &str = "
import ctypes, fcntl
def fallocate(f, mode, at, len):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate64(f, mode, ctypes.c_int64(at), ctypes.c_int64(len)):
        raise OSError(ctypes.get_errno(), 'fallocate')";

fn name(file: usize) -> String {
    format!("file-{file}")
}

/// The new run opens the files in any order, so that a handle of the old run could be another file's.
#[test]
fn what_is_repeated_to_a_new_run_meets_its_own_file() {
    let test = "what_is_repeated_to_a_new_run_meets_its_own_file";
    let home = Home::new();
    let served = home.folder("served");
    for file in 0..FILES {
        fs::write(served.join(name(file)), noise(BYTES, file as u64)).unwrap();
    }
    let mut serve = Serve::start(&home, &served);
    let address = serve.address.clone();
    let mount = Mount::start(&home, &serve, "mnt");
    let mut all = Vec::new();
    for file in 0..FILES {
        let Some(mut hands) = Hands::new(test) else {
            return;
        };
        hands.make(FALLOCATE);
        hands.make(&format!("at = {}", file * PAGE));
        let path = mount.path(&name(file));
        hands.make(&format!("f = os.open({path:?}, os.O_RDWR)"));
        all.push(hands);
    }

    // Each request is sent, and none is answered.
    signal(serve.pid(), Signal::STOP);
    for (file, hands) in all.iter_mut().enumerate() {
        hands.begin(DEEDS[file % DEEDS.len()].python);
    }
    wait_until("all wait for the server", || {
        mount.status()["waiting"].as_u64().unwrap() >= FILES as u64
    });
    serve.die();
    let serve = Serve::start_at(&home, &served, &address, &[]);
    for hands in &mut all {
        hands.answer().unwrap();
    }

    let other = Mount::start(&home, &serve, "other");
    for file in 0..FILES {
        let deed = file % DEEDS.len();
        let mut expected = noise(BYTES, file as u64);
        (DEEDS[deed].change)(&mut expected, file * PAGE);
        let there = served.join(name(file));
        assert!(fs::read(&there).unwrap() == expected, "{file}");
        assert!(fs::read(mount.path(&name(file))).unwrap() == expected);
        let mode = fs::metadata(&there).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode == 0o600, deed == MODES, "{file}: {mode:o}");
        let path = other.path(&name(file));
        let open = File::options().read(true).write(true).open(path).unwrap();
        let locked = fcntl_lock(&open, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(locked.is_err(), deed == LOCKS, "{file}: {locked:?}");
    }
}
