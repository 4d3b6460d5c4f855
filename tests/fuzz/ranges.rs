//! Any ranges, as the kernel may ask for them: a replica over real QUIC does to a file what the same calls do to a
//! file beside it.
//!
//! ```text
//! a call ─┬─▶ replica ══ QUIC ══ authority ─▶ served file ─┐
//!         └─▶ file of the same kind ───────────────────────┴─▶ same bytes, same size, refused by both
//! ```
//!
//! Where memfs has a limit of its own ([`REGION_BYTES_MAX`]) it refuses, and nothing has changed.

#![no_main]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "what is wrong ends the process"
)]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use memfs::node::authority::{self, AuthorityOptions};
use memfs::node::replica::{HandleNo, NodeNo, ROOT, Replica, ReplicaOptions};
use memfs::store::directory::Directory;
use memfs::transport::{Authorized, Dialer, Identity, Listener, ServerTrust};
use memfs::units::{ByteRange, REGION_BYTES_MAX};
use memfs::wire::{Allocate, Caller, Name, SetAttr};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const ME: Caller = Caller { uid: 0, gid: 0 };
const CALLS_MAX: usize = 40;
/// What the kernel asks for at most at once.
const LEN_MAX: u32 = 1 << 20;
/// A file of one page to the next, and then some.
const NEAR: u64 = 3 << 16;

/// A place in a file: near the beginning, on a page, near a limit, or anywhere.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Near(u32),
    Page(u8),
    BeforeLimit(u16),
    AfterLimit(u16),
    BeforeEnd(u16),
    Any(u64),
}

impl Place {
    fn offset(self) -> u64 {
        match self {
            Place::Near(at) => u64::from(at) % NEAR,
            Place::Page(page) => u64::from(page) % 64 * 4096,
            Place::BeforeLimit(before) => REGION_BYTES_MAX - u64::from(before),
            Place::AfterLimit(after) => REGION_BYTES_MAX + u64::from(after),
            Place::BeforeEnd(before) => i64::MAX as u64 - u64::from(before),
            Place::Any(at) => at,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Call {
    Read { at: Place, len: u32 },
    Write { at: Place, len: u16, byte: u8 },
    Resize(Place),
    Reserve { at: Place, len: u16, extend: bool },
    Punch { from: Place, to: Place },
    Seek { at: Place, data: bool },
    Flush,
    Sync,
    OpenAgain,
}

/// What is there for all inputs.
struct Scene {
    runtime: Runtime,
    replica: Arc<Replica>,
    folder: TempDir,
    node: NodeNo,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    // Holes, and sizes up to the greatest there is.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let served = folder.path().join("served");
    std::fs::create_dir(&served).unwrap();
    std::fs::write(served.join("file"), "").unwrap();
    // One thread for all: most of the time would go into waking others.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let replica = runtime.block_on(serve_and_mount(&served, folder.path()));
    let name = Name::new("file").unwrap();
    let node = runtime.block_on(replica.lookup(ROOT, &name)).unwrap().node;
    Scene {
        runtime,
        replica,
        folder,
        node,
    }
});

async fn serve_and_mount(served: &Path, folder: &Path) -> Arc<Replica> {
    let store = Arc::new(Directory::open(served).unwrap());
    let identity = Identity::generate();
    let authorized = Authorized::Keys(vec![identity.public()]);
    let address = "127.0.0.1:0".parse().unwrap();
    let listener = Arc::new(Listener::new(address, &identity, authorized).unwrap());
    let port = listener.address().unwrap().port();
    tokio::spawn(authority::serve(
        listener,
        store,
        AuthorityOptions::default(),
    ));
    let trust = ServerTrust::Key(identity.public());
    let dialer = Dialer::new("127.0.0.1", port, identity, trust).unwrap();
    let cache = folder.join("cache");
    std::fs::create_dir(&cache).unwrap();
    let options = ReplicaOptions {
        cache: Some(cache),
        ..ReplicaOptions::default()
    };
    Replica::connect(dialer, options).await.unwrap()
}

/// One input: the file through memfs, and the one beside it.
struct Trial {
    scene: &'static Scene,
    handle: HandleNo,
    model: File,
}

impl Trial {
    fn begin() -> Trial {
        let scene = &*SCENE;
        let path = scene.folder.path().join("model");
        let mut model = File::options();
        let model = model.read(true).write(true).create(true).truncate(true);
        let trial = Trial {
            scene,
            handle: Trial::open(scene),
            model: model.open(path).unwrap(),
        };
        trial.resize(0);
        trial
    }

    fn open(scene: &Scene) -> HandleNo {
        let opened = scene
            .runtime
            .block_on(scene.replica.open(scene.node, true, true));
        opened.unwrap().0
    }

    fn size(&self) -> u64 {
        self.model.metadata().unwrap().len()
    }

    fn call(&mut self, call: &Call) {
        let Scene {
            runtime, replica, ..
        } = self.scene;
        match call {
            Call::Read { at, len } => self.read(at.offset(), len % (LEN_MAX + 1)),
            Call::Write { at, len, byte } => self.write(at.offset(), &vec![*byte; *len as usize]),
            Call::Resize(to) => self.resize(to.offset()),
            Call::Reserve { at, len, extend } => {
                let mode = match extend {
                    true => (Allocate::Extend, FallocateFlags::empty()),
                    false => (Allocate::KeepSize, FallocateFlags::KEEP_SIZE),
                };
                self.allocate(at.offset(), u64::from(*len), mode);
            }
            Call::Punch { from, to } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let (from, to) = (from.offset(), to.offset());
                self.allocate(from, to.saturating_sub(from), (Allocate::PunchHole, flags));
            }
            Call::Seek { at, data } => self.seek(at.offset(), *data),
            Call::Flush => runtime.block_on(replica.flush(self.handle)).unwrap(),
            Call::Sync => runtime.block_on(replica.sync(self.handle, false)).unwrap(),
            Call::OpenAgain => {
                runtime.block_on(replica.flush(self.handle)).unwrap();
                replica.close(self.handle);
                self.handle = Trial::open(self.scene);
            }
        }
    }

    fn read(&self, at: u64, len: u32) {
        let read = self
            .scene
            .replica
            .read(self.handle, at, len, <[u8]>::to_vec);
        let read = self.scene.runtime.block_on(read);
        let mut known = vec![0; len as usize];
        match self.model.read_at(&mut known, at) {
            Ok(count) => assert!(read.unwrap() == known[..count], "{len} bytes at {at}"),
            // No offset of a file: nothing to be read there.
            Err(_) => assert!(read.is_err() || read.unwrap().is_empty()),
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let written = self.scene.replica.write(self.handle, at, bytes, false);
        let written = self.scene.runtime.block_on(written);
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > REGION_BYTES_MAX) {
            assert!(
                written.is_err() || bytes.is_empty(),
                "{} at {at}",
                bytes.len()
            );
        } else {
            written.unwrap();
            self.model.write_all_at(bytes, at).unwrap();
        }
    }

    fn resize(&self, size: u64) {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let Scene {
            runtime, replica, ..
        } = self.scene;
        let resized = runtime.block_on(replica.set_attr(self.scene.node, None, set, ME));
        if size > REGION_BYTES_MAX {
            assert!(resized.is_err(), "{size}");
        } else {
            assert_eq!(resized.unwrap().attr.size, size);
            self.model.set_len(size).unwrap();
        }
    }

    fn allocate(&self, at: u64, len: u64, (mode, flags): (Allocate, FallocateFlags)) {
        if len == 0 || at.checked_add(len).is_none() {
            return; // the kernel refuses these
        }
        let range = ByteRange::new(at, at + len);
        let allocated = self.scene.replica.allocate(self.handle, range, mode);
        let allocated = self.scene.runtime.block_on(allocated);
        if at + len > REGION_BYTES_MAX {
            assert!(allocated.is_err(), "{range:?}");
        } else {
            let known = fallocate(&self.model, flags, at, len);
            assert_eq!(allocated.is_ok(), known.is_ok(), "{range:?} {allocated:?}");
        }
    }

    fn seek(&self, at: u64, data: bool) {
        let found = self.scene.replica.seek(self.handle, at, data);
        match self.scene.runtime.block_on(found) {
            // Which zeros are holes is up to the store.
            Ok(found) => {
                assert!((at..=self.size()).contains(&found), "{found} from {at}");
                let known = next_data_byte(&self.model, at);
                assert!(
                    !data || known.is_none_or(|known| found <= known),
                    "{found} from {at}"
                );
            }
            Err(Errno::NXIO) if data => assert_eq!(next_data_byte(&self.model, at), None),
            Err(error) => assert!(at >= self.size(), "{error} at {at}"),
        }
    }

    /// Everything has arrived.
    fn end(self) {
        let Scene {
            runtime, replica, ..
        } = self.scene;
        runtime.block_on(replica.flush(self.handle)).unwrap();
        replica.close(self.handle);
        let served = File::open(self.scene.folder.path().join("served/file")).unwrap();
        assert_eq!(served.metadata().unwrap().len(), self.size());
        same_data(&self.model, &served);
        same_data(&served, &self.model);
    }
}

/// Where data begins at or after an offset.
fn next_data(file: &File, from: u64) -> Option<u64> {
    seek(file, SeekFrom::Data(from)).ok()
}

/// The first byte at or after an offset that is not 0.
fn next_data_byte(file: &File, from: u64) -> Option<u64> {
    let mut from = from;
    while let Some(start) = next_data(file, from) {
        let end = seek(file, SeekFrom::Hole(start)).unwrap();
        let bytes = bytes(file, start, end);
        if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
            return Some(start + at as u64);
        }
        from = end;
    }
    None
}

fn bytes(file: &File, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    let count = file.read_at(&mut bytes, start).unwrap();
    assert_eq!(count, bytes.len());
    bytes
}

/// The data of one are the bytes of the other.
fn same_data(one: &File, other: &File) {
    let mut from = 0;
    while let Some(start) = next_data(one, from) {
        let end = seek(one, SeekFrom::Hole(start)).unwrap();
        assert!(
            bytes(one, start, end) == bytes(other, start, end),
            "{start} to {end}"
        );
        from = end;
    }
}

fuzz_target!(|calls: Vec<Call>| {
    let mut trial = Trial::begin();
    for call in calls.iter().take(CALLS_MAX) {
        trial.call(call);
    }
    trial.end();
});
