//! In which order the parts of files are touched: told by replicas, kept, and told to those who come later.
//!
//! ```text
//! Touched ──▶ table in memory ── every few seconds, at a goodbye, at the end ──▶ a file for each
//! Order   ◀── table in memory ◀── what is not there yet ──────────────────────── directory
//! ```
//!
//! A replica knows best what is touched: also what it had brought ahead, of which nobody asks the authority. Orders
//! belong to a file as long as it lives ([`FileId`] tells a reused inode number from its former owner). A
//! wrong one would cost time and nothing else, so they are written lazily, a file that is none is ignored,
//! and two servers that write the same one leave that of the last.
//!
//! A file is named by the id in hexadecimal digits, `dev-ino-born`. It holds [`HEADING`] and the runs as a message of the
//! wire. Those that were asked for longest ago are removed when there are too many.

use crate::region::Order;
use crate::store;
use crate::units::{PageRange, pages_for};
use crate::wire::codec::{self, LENGTH_BYTES};
use crate::wire::{Attr, FileId, Kind, Learning, MESSAGE_BYTES_MAX, Pages};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often what is new is written.
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// A smaller file comes whole with a few pulls.
const FILE_BYTES_MIN: u64 = 2 << 20;
/// An order of fewer runs saves nobody much.
const RUNS_MIN: usize = 8;
/// Orders in memory, and runs of all of them.
const ORDERS_MAX: usize = 1024;
const RUNS_MAX: usize = 1 << 18;
/// Files in the directory, and their bytes.
const FILES_MAX: usize = 4096;
const FILES_BYTES_MAX: u64 = 64 << 20;
const HEADING: &[u8] = b"memfs order 1\n";

/// See the module.
pub(super) struct Orders {
    on: bool,
    /// `None`: they end with this authority.
    directory: Option<PathBuf>,
    table: Mutex<Table>,
    /// Held by who writes files.
    saving: Mutex<()>,
}

#[derive(Default)]
struct Table {
    orders: HashMap<FileId, Kept>,
    /// Of all orders.
    runs: usize,
    uses: u64,
}

#[derive(Default)]
struct Kept {
    order: Order,
    /// What is in its file is in the order.
    loaded: bool,
    unsaved: bool,
    used: u64,
}

impl Table {
    /// The order of a file, if there is room.
    fn get(&mut self, id: FileId) -> Option<&mut Kept> {
        self.uses += 1;
        if self.orders.len() >= ORDERS_MAX && !self.orders.contains_key(&id) {
            return None;
        }
        let kept = self.orders.entry(id).or_default();
        kept.used = self.uses;
        Some(kept)
    }

    /// Changes the order of a file.
    fn change<R>(&mut self, id: FileId, change: impl FnOnce(&mut Kept) -> R) -> Option<R> {
        let kept = self.get(id)?;
        let before = kept.order.len();
        let result = change(kept);
        let now = kept.order.len();
        self.runs = self.runs + now - before;
        Some(result)
    }

    fn is_full(&self) -> bool {
        self.orders.len() >= ORDERS_MAX || self.runs >= RUNS_MAX
    }

    /// Forgets what was used longest ago until half of the room is free; with `saved` nothing that is not.
    fn sweep(&mut self, saved: bool) {
        let mut ids: Vec<(u64, FileId)> = (self.orders.iter())
            .filter(|(_, kept)| !(saved && kept.unsaved))
            .map(|(&id, kept)| (kept.used, id))
            .collect();
        ids.sort_unstable_by_key(|&(used, _)| used);
        for (_, id) in ids {
            if self.orders.len() <= ORDERS_MAX / 2 && self.runs <= RUNS_MAX / 2 {
                break;
            }
            let removed = self.orders.remove(&id);
            self.runs -= removed.map_or(0, |kept| kept.order.len());
        }
    }
}

impl Orders {
    /// With a directory they outlive the authority; it exists, and nobody else can look into it.
    pub fn new(on: bool, directory: Option<PathBuf>) -> Orders {
        Orders {
            on,
            directory,
            table: Mutex::default(),
            saving: Mutex::default(),
        }
    }

    /// What a replica that opens the file is told.
    pub fn learning(&self, attr: &Attr) -> Learning {
        if !self.on || attr.kind != Kind::File || attr.size < FILE_BYTES_MIN {
            return Learning::Off;
        }
        let table = self.table.lock();
        let kept = table.orders.get(&attr.id);
        let known = kept.is_some_and(|kept| kept.order.len() >= RUNS_MIN);
        let loaded = kept.is_some_and(|kept| kept.loaded);
        drop(table);
        let saved = || self.path(attr.id).is_some_and(|path| path.exists());
        match known || !loaded && saved() {
            true => Learning::Known,
            false => Learning::New,
        }
    }

    /// The order of a file, for somebody who begins to use it.
    pub fn order(&self, id: FileId) -> Vec<Pages> {
        if !self.on {
            return Vec::new();
        }
        self.load(id);
        let mut table = self.table.lock();
        let runs = table.change(id, |kept| {
            kept.order.begin_use();
            kept.order.runs().map(Pages::from).collect()
        });
        runs.unwrap_or_default()
    }

    /// Somebody has touched these parts of a file, in this order.
    pub fn note(&self, attr: &Attr, runs: &[Pages]) {
        if self.learning(attr) == Learning::Off {
            return;
        }
        let below = PageRange::new(0, pages_for(attr.size));
        let mut table = self.table.lock();
        if table.runs + runs.len() > RUNS_MAX {
            table.sweep(self.directory.is_some());
            if table.runs + runs.len() > RUNS_MAX {
                return;
            }
        }
        table.change(attr.id, |kept| {
            for &run in runs {
                let run = PageRange::from(run).intersect(below);
                kept.unsaved |= !run.is_empty() && kept.order.note(run);
            }
        });
    }

    /// Writes what is new.
    pub fn save(&self) {
        if self.directory.is_some() {
            self.write_unsaved();
        }
        let mut table = self.table.lock();
        if table.is_full() {
            table.sweep(self.directory.is_some());
        }
    }

    fn write_unsaved(&self) {
        let _saving = self.saving.lock();
        let mut unsaved = Vec::new();
        {
            let table = self.table.lock();
            let kept = table.orders.iter();
            unsaved.extend(kept.filter(|(_, kept)| kept.unsaved).map(|(&id, _)| id));
        }
        for &id in &unsaved {
            self.load(id);
            let mut table = self.table.lock();
            let runs = table.orders.get_mut(&id).map(|kept| {
                kept.unsaved = false;
                kept.order.runs().map(Pages::from).collect::<Vec<_>>()
            });
            drop(table);
            let path = self.path(id);
            if let (Some(path), Some(runs)) = (path, runs.filter(|runs| runs.len() >= RUNS_MIN))
                && let Err(error) = write(&path, &runs)
            {
                tracing::warn!("{}: {error}", path.display());
            }
        }
        if let (Some(directory), false) = (&self.directory, unsaved.is_empty())
            && let Err(error) = remove_oldest(directory)
        {
            tracing::warn!("{}: {error}", directory.display());
        }
    }

    /// Reads what an earlier authority has written, once.
    fn load(&self, id: FileId) {
        let Some(path) = self.path(id) else {
            return;
        };
        let known = self.table.lock();
        if known.orders.get(&id).is_some_and(|kept| kept.loaded) {
            return;
        }
        drop(known);
        let earlier = match read(&path) {
            Ok(runs) => runs.into_iter().map(PageRange::from).collect(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("{}: {error}", path.display());
                }
                Order::default()
            }
        };
        self.table.lock().change(id, |kept| {
            if !kept.loaded {
                kept.loaded = true;
                kept.order.put_before(earlier);
            }
        });
    }

    fn path(&self, id: FileId) -> Option<PathBuf> {
        let directory = self.directory.as_ref()?;
        let FileId { dev, ino, born } = id;
        Some(directory.join(format!("{dev:x}-{ino:x}-{born:x}")))
    }
}

impl super::Service {
    /// Answers [`crate::wire::ReadRequest::Touched`] for an open file.
    pub(super) fn touched(
        &self,
        file: &dyn store::StoreFile,
        runs: &[Pages],
    ) -> store::Result<crate::wire::Answer> {
        if runs.len() > crate::region::ORDER_RUNS_MAX {
            return Err(store::Errno::INVAL);
        }
        self.orders.note(&file.attr()?, runs);
        Ok(crate::wire::Answer::Done)
    }

    pub(super) async fn save_orders_again_and_again(&self) {
        loop {
            tokio::time::sleep(SAVE_INTERVAL).await;
            self.blocking(|| self.orders.save()).await;
        }
    }
}

/// The runs in a file, which counts as used now.
fn read(path: &Path) -> io::Result<Vec<Pages>> {
    let file = File::open(path)?;
    let no_order = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut bytes = Vec::new();
    let bytes_max = HEADING.len() + LENGTH_BYTES + MESSAGE_BYTES_MAX;
    (&file).take(bytes_max as u64).read_to_end(&mut bytes)?;
    let encoded = bytes.strip_prefix(HEADING);
    let encoded = encoded.and_then(|encoded| encoded.get(LENGTH_BYTES..));
    let encoded = encoded.ok_or_else(|| no_order("not an order"))?;
    let runs = codec::decode(encoded).map_err(|error| no_order(&error.to_string()))?;
    let _ = file.set_modified(SystemTime::now()); // else it is removed earlier
    Ok(runs)
}

fn write(path: &Path, runs: &[Pages]) -> io::Result<()> {
    let encoded = codec::encode(&runs.to_vec()).map_err(io::Error::other)?;
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&new).and_then(|mut file| {
        file.write_all(HEADING)?;
        file.write_all(&encoded)
    });
    let written = written.and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Removes files from the directory that were used longest ago, while there are too many.
fn remove_oldest(directory: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Gone in the meantime, perhaps.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
    let mut count = files.len();
    if count <= FILES_MAX && bytes <= FILES_BYTES_MAX {
        return Ok(());
    }
    files.sort_unstable();
    for (_, len, path) in files {
        if count <= FILES_MAX && bytes <= FILES_BYTES_MAX {
            break;
        }
        fs::remove_file(path)?;
        count -= 1;
        bytes -= len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn attr(ino: u64, size: u64) -> Attr {
        let time = crate::wire::Time::default();
        Attr {
            id: FileId {
                dev: 1,
                ino,
                born: 3,
            },
            kind: Kind::File,
            mode: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            blocks: 0,
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    const FILE: u64 = 1 << 30;

    fn scattered(count: u64) -> Vec<Pages> {
        let page = |i| (i * 7919) % (FILE >> 12);
        let run = |i| Pages {
            first: page(i),
            count: 1,
        };
        (0..count).map(run).collect()
    }

    #[test]
    fn what_was_touched_is_known_to_the_next_authority() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Orders::new(true, Some(folder.path().to_owned()));
        let (file, all) = (attr(1, FILE), scattered(20));
        let orders = open();
        assert_eq!(orders.learning(&file), Learning::New);
        assert!(orders.order(file.id).is_empty());
        orders.note(&file, &all[..5]);
        assert_eq!(orders.learning(&file), Learning::New, "hardly worth it");
        orders.save();
        assert!(!orders.path(file.id).unwrap().exists());
        orders.note(&file, &all[5..10]);
        assert_eq!(orders.learning(&file), Learning::Known);
        orders.save();
        let mode = fs::metadata(orders.path(file.id).unwrap()).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);

        // One that has not read it when more comes, and one that has.
        for upto in [15, 20] {
            let orders = open();
            assert_eq!(orders.learning(&file), Learning::Known);
            if upto == 20 {
                assert_eq!(orders.order(file.id), all[..15]);
            }
            orders.note(&file, &all[upto - 5..upto]);
            assert_eq!(orders.order(file.id), all[..upto]);
            orders.save();
        }
        assert_eq!(open().order(file.id), all);
        assert_eq!(open().learning(&attr(2, FILE)), Learning::New);
        assert_eq!(Orders::new(true, None).learning(&file), Learning::New);
    }

    #[test]
    fn a_garbled_file_is_no_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = attr(1, FILE);
        let orders = || Orders::new(true, Some(folder.path().to_owned()));
        let path = orders().path(file.id).unwrap();
        write(&path, &scattered(100)).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut huge = [HEADING, &[0xff; 200]].concat();
        huge.resize(3 << 20, 0xff);
        for bytes in [&[][..], b"memfs", HEADING, &whole[..99], &whole[1..], &huge] {
            fs::write(&path, bytes).unwrap();
            let orders = orders();
            assert!(orders.order(file.id).is_empty());
            orders.note(&file, &scattered(9));
            orders.save();
            assert_eq!(read(&path).unwrap(), scattered(9), "and is written anew");
        }
        // Runs that are none.
        let strange = [(u64::MAX, u64::MAX), (5, 0), (7, 1), (7, u64::MAX)];
        let strange = strange.map(|(first, count)| Pages { first, count });
        write(&path, &strange).unwrap();
        let runs = orders().order(file.id);
        assert!(
            runs.iter()
                .all(|run| run.first.checked_add(run.count).is_some())
        );
    }

    #[test]
    fn small_files_and_what_is_past_the_end_are_not_remembered() {
        let orders = Orders::new(true, None);
        let small = attr(1, FILE_BYTES_MIN - 1);
        orders.note(&small, &scattered(20));
        assert_eq!(orders.learning(&small), Learning::Off);
        assert!(orders.order(small.id).is_empty());
        let file = attr(2, FILE_BYTES_MIN);
        orders.note(
            &file,
            &[
                Pages {
                    first: 0,
                    count: u64::MAX,
                },
                Pages {
                    first: 512,
                    count: 1,
                },
            ],
        );
        assert_eq!(
            orders.order(file.id),
            [Pages {
                first: 0,
                count: 512
            }]
        );
        let off = Orders::new(false, None);
        off.note(&file, &scattered(20));
        assert_eq!(off.learning(&file), Learning::Off);
        assert!(off.order(file.id).is_empty());
    }

    #[test]
    fn memory_and_directory_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let orders = Orders::new(true, Some(folder.path().to_owned()));
        let all = scattered(crate::region::ORDER_RUNS_MAX as u64);
        for ino in 0..12 {
            orders.note(&attr(ino, FILE), &all);
            if ino % 3 == 0 {
                orders.save();
            }
            let table = orders.table.lock();
            assert!(table.runs <= RUNS_MAX);
            assert_eq!(
                table.runs,
                table
                    .orders
                    .values()
                    .map(|kept| kept.order.len())
                    .sum::<usize>()
            );
        }
        orders.save();
        assert!(orders.table.lock().runs <= RUNS_MAX / 2);
        assert_eq!(
            orders.order(attr(0, FILE).id).len(),
            all.len(),
            "is read again"
        );
        for ino in 0..ORDERS_MAX as u64 + 10 {
            orders.note(&attr(1000 + ino, FILE), &all[..1]);
        }
        assert!(orders.table.lock().orders.len() <= ORDERS_MAX);

        for file in 0..FILES_MAX + 5 {
            fs::write(folder.path().join(format!("x{file}")), "x").unwrap();
        }
        let mut oldest = File::options();
        let oldest = oldest.write(true).open(folder.path().join("x7")).unwrap();
        oldest.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        remove_oldest(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), FILES_MAX);
        assert!(!folder.path().join("x7").exists());
    }
}
