//! Copies that outlive the mount: one folder for each source, below the cache folder.
//!
//! ```text
//! DIR/SOURCE/            SOURCE: hash of who serves, and what (0700; files 0600)
//!   lock                 locked by the mount that owns the folder; holds its process id
//!   boot                 whether all this survived the last start of the machine: see `boot`
//!   name                 what the source is called, for people
//!   FILE.copy            the bytes of one file, with holes   (FILE: its device, inode and birth)
//!   FILE.map             which pages of it are there, and of what they are a copy: see `map`
//!   FILE.new             what is to be FILE.copy, while the one there is is left to those who read it: see `lending`
//!   FILE.open            a mount has the file open for writing, or had: look for dirty pages
//!   paths/HASH           whose copy belongs to a path: see `heir`
//!   conflicts/FILE-N.*   dirty pages of a file that others had changed when they were found
//! ```
//!
//! One mount at a time owns a folder. A second one of the same source at the same time keeps its copies in files
//! without names, which end with it.
//!
//! | what ends | what is kept |
//! |---|---|
//! | a mount, in order | all copies; what could not be pushed as well |
//! | its process, at any instruction | the same |
//! | the machine, after a mount was unmounted | the same |
//! | the machine, while a mount was there | nothing of that source, except what is in `conflicts` |
//!
//! The next mount takes a copy up when a file is opened whose stamp at the authority is the one recorded. Dirty
//! pages it takes up at once: see [`recover`].

mod bits;
mod boot;
pub(super) mod conflicts;
mod heir;
pub(super) mod map;
pub(super) mod recover;
pub(super) mod room;
pub(super) mod take_up;

use super::link::Link;
use super::{ReplicaOptions, SourceName};
use crate::sys::{MappedFile, UNFINISHED};
use crate::wire::{Attr, FileId};
use map::{Damage, PageMap};
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// So long a process that is ending may take to let go of the folder.
const OWNER_ENDS_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const OWNER_LOOK: Duration = Duration::from_millis(5);
/// Larger files than a page map can hold have copies that end with the mount.
pub(super) const FILE_BYTES_MAX: u64 = 16 << 40;

/// The folder of one source, owned by this mount.
pub(super) struct Cache {
    folder: PathBuf,
    /// Of this machine.
    boot: String,
    /// Held while the folder is owned.
    _lock: File,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often a copy is in use.
    in_use: HashMap<FileId, u32>,
    /// Copies that nobody uses.
    idle: HashMap<FileId, Idle>,
}

/// A copy on disk that nobody uses.
#[derive(Clone, Copy)]
struct Idle {
    /// Bytes it takes on disk.
    bytes: u64,
    /// When it was last used, in seconds since 1970.
    used: u64,
}

/// A copy, open.
pub(super) struct Kept {
    pub copy: MappedFile,
    pub map: PageMap,
}

impl Kept {
    /// Bytes it takes on disk.
    pub fn bytes(&self) -> u64 {
        self.copy.allocated_bytes().unwrap_or(0) + self.map.allocated_bytes()
    }
}

/// What a source is called in the cache.
pub(super) fn source_folder(parts: &[&[u8]]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    hex(&context.finish().as_ref()[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970.
pub(super) fn seconds_now() -> u64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0, |passed| passed.as_secs())
}

fn stem(id: FileId) -> String {
    format!("{:x}-{:x}-{:x}", id.dev, id.ino, id.born)
}

fn parse_stem(stem: &str) -> Option<FileId> {
    let mut parts = stem.split('-');
    let mut part = || u64::from_str_radix(parts.next()?, 16).ok();
    let id = FileId {
        dev: part()?,
        ino: part()?,
        born: part()?,
    };
    (stem_of_is(id, stem)).then_some(id)
}

fn stem_of_is(id: FileId, text: &str) -> bool {
    stem(id) == text
}

pub(super) fn private_folder(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let metadata = path.symlink_metadata()?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    match metadata.is_dir() && ours && metadata.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{}: others can get in", path.display()),
        )),
    }
}

impl Cache {
    /// Takes the folder of a source; `None` if another mount has it. May take a while after the end of one
    /// that was killed.
    ///
    /// # Errors
    /// Where the folder cannot be made or used.
    pub fn open(directory: &Path, source: &str, name: &str) -> io::Result<Option<Cache>> {
        let folder = directory.join(source);
        private_folder(&folder)?;
        let Some(lock) = take_lock(&folder)? else {
            return Ok(None);
        };
        let cache = Cache {
            boot: boot::id()?,
            _lock: lock,
            state: Mutex::default(),
            folder,
        };
        if !boot::is_whole(&cache.folder, &cache.boot) {
            cache.give_up_all()?;
        }
        for id in cache.all(UNFINISHED) {
            std::fs::remove_file(cache.path(id, UNFINISHED))?;
        }
        boot::record(&cache.folder, &cache.boot, false)?;
        // For people only.
        let _ = std::fs::write(cache.folder.join("name"), format!("{name}\n"));
        Ok(Some(cache))
    }

    fn path(&self, id: FileId, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", stem(id)))
    }

    /// All files of the folder of this kind.
    fn all(&self, kind: &str) -> Vec<FileId> {
        let entries = std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let stems = names.filter_map(|name| {
            let (stem, suffix) = name.split_once('.')?;
            (suffix == kind).then(|| parse_stem(stem)).flatten()
        });
        stems.collect()
    }

    /// The machine has ended since: what is in the folder may be torn.
    fn give_up_all(&self) -> io::Result<()> {
        let (mut copies, mut lost) = (0, Vec::new());
        for id in self.all("map") {
            copies += 1;
            if self.path(id, "open").exists()
                && let Ok(map) = PageMap::open(&self.path(id, "map"))
                && map.has_dirty()
            {
                lost.push(map.path().cloned().unwrap_or_default());
            }
        }
        for kind in ["map", "copy", "open"] {
            for id in self.all(kind) {
                std::fs::remove_file(self.path(id, kind))?;
            }
        }
        if !lost.is_empty() {
            tracing::warn!(
                "this machine was not shut down in order: bytes that had not been pushed yet are lost of {lost:?}"
            );
        } else if copies > 0 {
            tracing::info!("this machine was not shut down in order: {copies} copies are dropped");
        }
        Ok(())
    }

    /// The copy of a file and its map, empty ones if there are none or they are damaged. Each call is to be
    /// followed by [`Cache::release`].
    ///
    /// # Errors
    /// Where neither can be had.
    pub fn take(&self, id: FileId) -> io::Result<Kept> {
        {
            let mut state = self.state.lock();
            state.idle.remove(&id);
            *state.in_use.entry(id).or_default() += 1;
        }
        let made = self.find(id).or_else(|damage| {
            if !matches!(&damage, Damage::Io(error) if error.kind() == io::ErrorKind::NotFound) {
                tracing::warn!("the page map {} is dropped: {damage}", stem(id));
            }
            self.make(id)
        });
        if made.is_err() {
            self.release(id, 0);
        }
        made
    }

    /// The copy of a file there is.
    pub fn find(&self, id: FileId) -> Result<Kept, Damage> {
        let map = PageMap::open(&self.path(id, "map"))?;
        if map.id() != id {
            return Err(Damage::Wrong("it is of another file"));
        }
        let path = self.path(id, "copy");
        if path.symlink_metadata()?.len() < map.copy_bytes() {
            return Err(Damage::Wrong("its copy is too short"));
        }
        Ok(Kept {
            copy: MappedFile::named(&path)?,
            map,
        })
    }

    /// An empty copy of a file, in place of what there is.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn make(&self, id: FileId) -> io::Result<Kept> {
        let map = self.make_map(id)?;
        let path = self.path(id, "copy");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let copy = MappedFile::named(&path)?;
        Ok(Kept { copy, map })
    }

    /// A map that knows of no page, in place of what there is.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn make_map(&self, id: FileId) -> io::Result<PageMap> {
        PageMap::create(&self.path(id, "map"), id)
    }

    /// Whether there is a copy of a file, in use or not.
    pub fn holds(&self, id: FileId) -> bool {
        self.path(id, "map").exists()
    }

    /// Bytes that a copy takes which nobody uses.
    pub fn idle_bytes(&self, id: FileId) -> u64 {
        self.state.lock().idle.get(&id).map_or(0, |idle| idle.bytes)
    }

    /// A copy that was taken is not used any more; it takes so many bytes. False if it is used elsewhere, or the
    /// folder is not owned any more.
    pub fn release(&self, id: FileId, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let Some(count) = state.in_use.get_mut(&id) else {
            return false;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        state.in_use.remove(&id);
        let used = seconds_now();
        state.idle.insert(id, Idle { bytes, used });
        true
    }

    /// Notes that the file is open for writing: the next mount will look for dirty pages.
    ///
    /// # Errors
    /// On a full disk.
    pub fn mark_writing(&self, id: FileId) -> io::Result<()> {
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        options.open(self.path(id, "open")).map(drop)
    }

    /// Nothing of the file is dirty, and nobody has it open for writing.
    pub fn unmark_writing(&self, id: FileId) {
        // Where it stays, the next mount finds that there is nothing dirty.
        let _ = std::fs::remove_file(self.path(id, "open"));
    }

    /// Files that may have dirty pages.
    pub fn marked(&self) -> Vec<FileId> {
        self.all("open")
    }

    /// Makes everything durable and gives the folder up. Nothing of it may be used afterwards.
    pub fn finish(&self) {
        let done = File::open(&self.folder)
            .and_then(|folder| Ok(rustix::fs::syncfs(folder)?))
            .and_then(|()| boot::record(&self.folder, &self.boot, true));
        if let Err(error) = done {
            tracing::warn!(
                "{}: it may not survive a restart: {error}",
                self.folder.display()
            );
        }
        // The lock goes with the process: something may still be on its way.
    }
}

/// The lock of the folder; `None` if a process has it that is not about to end.
fn take_lock(folder: &Path) -> io::Result<Option<File>> {
    let mut options = File::options();
    let options = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let lock = options.open(folder.join("lock"))?;
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if is_ending(&lock) => {
                if began.elapsed() > OWNER_ENDS_MAX {
                    return Ok(None);
                }
                std::thread::sleep(OWNER_LOOK);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
    let owner = std::process::id().to_string();
    lock.set_len(0)?;
    std::os::unix::fs::FileExt::write_all_at(&lock, owner.as_bytes(), 0)?;
    Ok(Some(lock))
}

/// Whether the process that holds the lock is about to end, or has just ended.
fn is_ending(lock: &File) -> bool {
    let mut text = [0; 16];
    let len = std::os::unix::fs::FileExt::read_at(lock, &mut text, 0).unwrap_or(0);
    let pid: Option<u32> = std::str::from_utf8(&text[..len])
        .ok()
        .and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/status")).map_or_else(
            // ESRCH while it goes.
            |error| {
                error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
            },
            |status| is_ending_by(&status),
        )
    })
}

/// By `/proc/PID/status`, see proc_pid_status(5): it has no memory any more, or SIGKILL is on its way to it.
fn is_ending_by(status: &str) -> bool {
    const SIGKILL: u64 = 1 << (9 - 1);
    let pending = status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or(line.strip_prefix("ShdPnd:"))
        })
        .any(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & SIGKILL != 0));
    pending || !status.lines().any(|line| line.starts_with("VmSize:"))
}

/// The cache of a replica, as far as it can be had.
pub(super) async fn open(link: &Link, root: &Attr, options: &ReplicaOptions) -> Option<Cache> {
    let directory = options.cache.clone()?;
    let (kind, who, shown): (&[u8], Vec<u8>, String) = match &options.source {
        SourceName::Name(name) => (b"name", name.clone().into_bytes(), name.clone()),
        SourceName::Key => {
            let subtree = options.subtree.as_os().to_string_lossy();
            let subtree = subtree.trim_start_matches('.');
            let shown = format!("memfs://{}/{subtree}", link.name());
            (b"key", link.route.dialer().server()?.0.to_vec(), shown)
        }
        SourceName::Nothing => return None,
    };
    // Not its device: that number may be another one after a restart of the serving machine.
    let (ino, born) = (root.id.ino.to_le_bytes(), root.id.born.to_le_bytes());
    let source = source_folder(&[kind, &who, &ino, &born]);
    let name = shown.clone();
    let opened = tokio::task::spawn_blocking(move || Cache::open(&directory, &source, &name)).await;
    match opened.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(Some(cache)) => Some(cache),
        Ok(None) => {
            tracing::info!(
                "{shown}: mounted elsewhere as well: the copies of this mount end with it"
            );
            None
        }
        Err(error) => {
            tracing::warn!("{shown}: copies end with this mount: {error}");
            None
        }
    }
}
