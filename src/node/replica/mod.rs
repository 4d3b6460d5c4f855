//! A replica of an authority's tree: names, attributes and copies of regions, kept coherent.
//!
//! | file | owns |
//! |---|---|
//! | `link`, `keeper` | the connection: requests, repetition; attaching, lease, reconnecting |
//! | `nodes` | the table of nodes, what is cached of them |
//! | `names`, `attrs`, `files` | what a front end calls, by what it is about |
//! | `mode` | what files are opened for |
//! | `region` | one region: core, local copy, who waits |
//! | `inner` | what its lock guards |
//! | `locks` | locks that programs hold |
//! | `lending` | copies that the kernel reads by itself |
//! | `copies` | which regions and copies there are |
//! | `full` | the disk of the copies is full |
//! | `refused` | pushes that the authority refuses |
//! | `cache` | copies that outlive the mount, and room for them |
//! | `given_up` | calls of programs that were killed |
//! | `transfer` | pull and push tasks |
//! | `compare` | comparing bytes from before with the authority's |
//! | `unsynced` | what was pushed and may be lost again |
//! | `events` | invalidations, and what follows a lost link |
//! | `kernel` | keeping the kernel's cache coherent |
//! | `revoke` | taking it back when the lease is lost |
//! | `learn` | in which order regions are touched |
//! | `status` | what is going on; the end |
//!
//! Calls that may have to wait for the authority are `async` and finish at their first poll where everything
//! is here; the two on the hot path have a form that never waits ([`Replica::try_read`],
//! [`Replica::try_write`]).
//!
//! Order of locks: `Nodes::table`, then a node's `region` slot, then its region's `inner`; `Shared::regions` before
//! a `region` slot; a node's `state` last. None is held across an await, but for a region's `remote`.

mod attrs;
mod cache;
mod clock;
mod compare;
mod copies;
mod events;
mod files;
mod full;
mod given_up;
mod inner;
mod keeper;
mod kernel;
mod learn;
mod lending;
mod link;
mod listing;
mod locks;
mod mode;
mod names;
mod nodes;
mod refused;
mod region;
mod revoke;
mod status;
mod transfer;
mod unsynced;

pub use cache::conflicts::Conflict;
pub use cache::room::ROOM_BYTES_MIN as CACHE_BYTES_MIN;
pub use given_up::Call;
pub use lending::Backing;
pub use locks::LockAsked;
pub use status::{LinkState, RegionStatus, Status};

use crate::store::{Errno, Result};
use crate::transport::Route;
use crate::units::ByteRange;
use crate::wire::{Attr, Caller, Capabilities, RelPath};
use link::Moment;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// A node's number on this mount, as `st_ino` shows it. [`ROOT`] is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeNo(pub u64);

/// The root of the mount.
pub const ROOT: NodeNo = NodeNo(1);

/// An open file or directory on this mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleNo(pub u64);

/// By what a source is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceName {
    /// The server's key, which stays the same, and the root.
    Key,
    /// This name and the root: the server has another key each time.
    Name(String),
    /// It is a new one each time: copies end with the mount.
    Nothing,
}

/// How a replica works.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Send no change.
    pub read_only: bool,
    /// The source does not change: where changes are refused as well, the kernel may read whole copies itself.
    pub immutable: bool,
    /// The kernel may keep names: see [`KernelCache::drop_names`].
    pub keep_names: bool,
    /// Which part of the export is the root.
    pub subtree: RelPath,
    /// Where local copies are kept; `None`: in memory.
    pub cache: Option<PathBuf>,
    /// By what the source is known again, so that its copies in `cache` can be.
    pub source: SourceName,
    /// Local copies take no more than this, in bytes, at least 8 MiB.
    pub cache_bytes_max: u64,
    /// Pull what nobody has asked for yet.
    pub background: bool,
    /// Have the authority remember in which order files are touched, and pull ahead in that order.
    pub learn: bool,
    /// A store through a mapping leaves within this time.
    pub push_interval: Duration,
    /// `--soft`: give `EIO` after this time without an answer; `None`: wait (`--hard`).
    pub soft: Option<Duration>,
    /// `--offline serve`: use copies also without a lease while the link is lost.
    pub serve_offline: bool,
    /// Let frames be compressed.
    pub compress: bool,
    /// Writers wait while this many bytes are dirty.
    pub dirty_bytes_max: u64,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        ReplicaOptions {
            read_only: false,
            immutable: false,
            keep_names: false,
            subtree: RelPath::root(),
            cache: None,
            source: SourceName::Key,
            cache_bytes_max: 16 << 30,
            background: true,
            learn: true,
            push_interval: Duration::from_secs(1),
            soft: None,
            serve_offline: false,
            compress: true,
            dirty_bytes_max: 256 << 20,
        }
    }
}

/// A node as an answer to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its number.
    pub node: NodeNo,
    /// Tells apart nodes that had the same number one after the other.
    pub generation: u64,
    /// Attributes, owners mapped to this machine.
    pub attr: Attr,
    /// How long the kernel may keep the attributes.
    pub ttl: Duration,
    /// How long it may keep that a name stands for the node, where it heeds [`KernelCache::drop_names`].
    pub name_ttl: Duration,
}

/// An entry of a directory being read.
#[derive(Clone, Debug)]
pub struct DirItem {
    /// Its name; `.` and `..` come first.
    pub name: std::ffi::OsString,
    /// What it names; its lookup count is raised only by [`Replica::remember`].
    pub entry: Entry,
    /// To go on after this entry.
    pub cursor: u64,
}

/// The kernel's cache above a front end. All of it may block: a replica calls it from one thread of its
/// own, in order, never from a call that a front end made.
pub trait KernelCache: Send + Sync + 'static {
    /// Drop the attributes of a node.
    fn drop_attributes(&self, node: NodeNo);
    /// Look all names up anew when they are used next. What is mounted below a folder of this one's is unmounted
    /// then, when somebody goes through that folder.
    fn drop_names(&self);
    /// Drop pages (dirty ones are written back first) and attributes. An `end` of `u64::MAX`: to the end.
    fn drop_pages(&self, node: NodeNo, range: ByteRange);
    /// Put bytes into the page cache. Only while no program has the file open for writing.
    fn put_pages(&self, node: NodeNo, offset: u64, bytes: &[u8]);
    /// Write back pages dirtied through mappings, and wait. `path` is where the node was last seen.
    fn write_back(&self, node: NodeNo, path: &RelPath);
}

/// Of which session what is known is.
#[derive(Clone, Copy)]
struct Era {
    generation: u64,
    /// Names the run of the authority.
    boot: u64,
}

impl Era {
    fn of(session: &link::Session) -> Era {
        Era {
            generation: session.generation,
            boot: session.welcome.boot,
        }
    }
}

/// A replica.
pub struct Replica {
    shared: Arc<Shared>,
}

/// What the tasks of a replica share.
pub(crate) struct Shared {
    link: Arc<link::Link>,
    options: ReplicaOptions,
    runtime: tokio::runtime::Handle,
    nodes: nodes::Nodes,
    files: RwLock<HashMap<HandleNo, Arc<files::OpenFile>>>,
    dirs: RwLock<HashMap<HandleNo, Arc<listing::DirHandle>>>,
    next_handle: AtomicU64,
    locks: locks::HeldLocks,
    /// Nodes that have a region.
    regions: Mutex<HashMap<NodeNo, Arc<nodes::Node>>>,
    kernel: OnceLock<kernel::Kernel>,
    owners: attrs::Owners,
    capabilities: Capabilities,
    server_user: Caller,
    server_read_only: bool,
    /// The session there is, or was last.
    era: Mutex<Era>,
    /// Dirty bytes of all regions.
    dirty_bytes: watch::Sender<u64>,
    /// Told of each push that is refused.
    refusals: watch::Sender<()>,
    /// Copies that outlive this mount.
    cache: Option<cache::Cache>,
    /// What is to be recorded of them.
    recording: Mutex<cache::take_up::Recording>,
    bases_recorded: Notify,
    /// Bytes of all local copies, also of those that nobody uses.
    copy_bytes: AtomicU64,
    /// What copies may take on their disk, as far as that has been full.
    disk_bytes: AtomicU64,
    /// Held by the store that room is being made for.
    disk_turn: tokio::sync::Mutex<()>,
    /// Regions at one time, for want of descriptors.
    regions_max: usize,
    /// Copies are being given up.
    making_room: AtomicBool,
    /// The kernel will not read copies itself.
    lending_refused: AtomicBool,
    uses: AtomicU64,
    /// Tasks that tell what was touched.
    telling: watch::Sender<usize>,
    /// So many listings are to bring the names of extended attributes as well.
    xattrs_wanted: AtomicU32,
    pulled_bytes: AtomicU64,
    pushed_bytes: AtomicU64,
    /// Found to be the authority's by comparing hashes, and bytes of hashes received for that.
    confirmed_bytes: AtomicU64,
    hash_bytes: AtomicU64,
    /// One permit who hashes.
    hashing: tokio::sync::Semaphore,
}

impl Replica {
    /// Connects, and is let in. To be called within a tokio runtime of several threads.
    ///
    /// # Errors
    /// One line for the user.
    pub async fn connect(
        route: impl Into<Route>,
        options: ReplicaOptions,
    ) -> std::result::Result<Arc<Replica>, String> {
        let (link, session, events) = link::Link::connect(route.into(), &options).await?;
        let root = &session.welcome.root;
        let nodes = nodes::Nodes::new(root, session.generation);
        if let Ok(node) = nodes.get(ROOT) {
            node.adopt(root, Moment::start(session.generation));
        }
        let interval = options.push_interval;
        let cache = cache::open(&link, root, &options).await;
        let shared = Arc::new(Shared {
            link,
            options,
            runtime: tokio::runtime::Handle::current(),
            nodes,
            files: RwLock::default(),
            dirs: RwLock::default(),
            next_handle: AtomicU64::new(1),
            locks: locks::HeldLocks::default(),
            regions: Mutex::default(),
            kernel: OnceLock::new(),
            owners: attrs::Owners::default(),
            capabilities: session.welcome.capabilities,
            server_user: session.welcome.server,
            server_read_only: session.welcome.read_only,
            era: Mutex::new(Era::of(&session)),
            dirty_bytes: watch::Sender::new(0),
            refusals: watch::Sender::new(()),
            cache,
            recording: Mutex::default(),
            bases_recorded: Notify::new(),
            copy_bytes: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(u64::MAX),
            disk_turn: tokio::sync::Mutex::default(),
            regions_max: copies::regions_max(),
            making_room: AtomicBool::new(false),
            lending_refused: AtomicBool::new(false),
            uses: AtomicU64::new(0),
            telling: watch::Sender::new(0),
            xattrs_wanted: AtomicU32::new(0),
            pulled_bytes: AtomicU64::new(0),
            pushed_bytes: AtomicU64::new(0),
            confirmed_bytes: AtomicU64::new(0),
            hash_bytes: AtomicU64::new(0),
            hashing: tokio::sync::Semaphore::new(1),
        });
        tokio::spawn(events::take_in(Arc::downgrade(&shared), events));
        tokio::spawn(status::push_at_intervals(Arc::downgrade(&shared), interval));
        if shared.options.learn {
            tokio::spawn(learn::tell_at_intervals(Arc::downgrade(&shared)));
        }
        shared.look_through_cache();
        if let Some(listing) = &session.welcome.listing {
            shared.take_in(listing, session.moment(listing.at));
        }
        let replica = Arc::new(Replica { shared });
        replica.recover().await;
        Ok(replica)
    }

    /// From here on there is a kernel to keep coherent. Once.
    ///
    /// # Errors
    /// Where no threads can be had.
    pub fn set_kernel(&self, cache: Arc<dyn KernelCache>) -> std::io::Result<()> {
        let kernel = kernel::Kernel::start(cache, &self.shared)?;
        let _ = self.shared.kernel.set(kernel);
        Ok(())
    }

    /// The user the authority runs as, for mapping owners; see [`Replica::set_owner_map`].
    pub fn server_user(&self) -> Caller {
        self.shared.server_user
    }

    /// Shows `server`'s files as `local`'s, and the other way round in requests.
    pub fn set_owner_map(&self, server: Caller, local: Caller) {
        self.shared.owners.set(server, local);
    }

    /// Whether the authority or the options refuse changes.
    pub fn is_read_only(&self) -> bool {
        self.shared.options.read_only || self.shared.server_read_only
    }

    /// Waits for `work`, with `--soft` no longer than that.
    async fn bounded<R>(&self, work: impl Future<Output = Result<R>>) -> Result<R> {
        match self.shared.options.soft {
            None => work.await,
            Some(limit) => {
                // Polled once before there is a timer: what is here needs none.
                let mut work = std::pin::pin!(work);
                let first = std::future::poll_fn(|context| {
                    std::task::Poll::Ready(work.as_mut().poll(context))
                });
                if let std::task::Poll::Ready(outcome) = first.await {
                    return outcome;
                }
                let silent = &self.shared.link.silent;
                if silent.load(Ordering::Relaxed) {
                    return Err(Errno::IO);
                }
                tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                    silent.store(true, Ordering::Relaxed);
                    Err(Errno::IO)
                })
            }
        }
    }
}

impl Replica {
    /// As [`Replica::bounded`], unless the link is lost, copies are used all the same, and `known` has what is wanted.
    async fn or_adrift<R>(
        &self,
        ask: impl Future<Output = Result<R>>,
        known: impl Future<Output = Option<R>>,
    ) -> Result<R> {
        if !self.shared.options.serve_offline {
            return self.bounded(ask).await;
        }
        let adrift = async {
            self.shared.link.until_adrift().await;
            known.await
        };
        tokio::select! {
            biased;
            Some(known) = adrift => Ok(known),
            outcome = self.bounded(ask) => outcome,
        }
    }
}

impl Shared {
    fn era(&self) -> Era {
        *self.era.lock()
    }

    fn new_handle(&self) -> HandleNo {
        HandleNo(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    /// A region's dirty bytes were `before` and are `now`.
    fn count_dirty(&self, before: u64, now: u64) {
        if before != now {
            self.dirty_bytes
                .send_modify(|dirty| *dirty = (*dirty + now).saturating_sub(before));
        }
    }

    /// A region's copy took `before` bytes and takes `now`.
    fn count_copies(&self, before: u64, now: u64) {
        self.copy_bytes
            .fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Whether a writer need not wait.
    fn has_room(&self) -> bool {
        *self.dirty_bytes.borrow() < self.dirty_bytes_max()
    }

    /// Forgets nodes that nobody refers to, when there are many.
    fn sweep(&self) {
        self.forgotten(&self.nodes.sweep());
    }

    /// Nodes are not known any more: the authority need not tell of their changes.
    fn forgotten(&self, nodes: &[Arc<nodes::Node>]) {
        let generation = self.era().generation;
        for batch in nodes.chunks(FORGET_BATCH) {
            let batch = batch.iter().filter_map(|node| {
                // The region refers to its node, and the other way round.
                node.region.lock().take();
                let seen = node.seen();
                // What an older session has told, this one tells no changes of.
                (seen.generation == generation).then_some((node.id, seen.tick))
            });
            let forget = crate::wire::ReplicaEvent::Forget(batch.collect());
            self.link.send_about(generation, forget);
        }
        if !nodes.is_empty() {
            let mut regions = self.regions.lock();
            for node in nodes {
                regions.remove(&node.no);
            }
        }
    }
}

/// Nodes named in one [`crate::wire::ReplicaEvent::Forget`], so that it stays a small message.
const FORGET_BATCH: usize = 1024;
