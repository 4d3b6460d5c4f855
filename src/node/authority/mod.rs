//! The authority's service: lets replicas in, answers their requests from a store, and tells them of
//! changes.
//!
//! ```text
//!  Listener ── connection ── Hello, control events ─────────── session (handles, answers, what is observed)
//!                  │                                                │
//!                  └─ one task a request ─┬─ read, pull ──────┐     │
//!                                         └─ change, push ────┼── coherence (clock, subscriptions, leases)
//!                                                             │        ▲
//!                                            store ◀──────────┘        │
//!                                              └─ what others change ─ notice
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `connection` | one connection: being let in, the control stream, taking requests |
//! | `session` | what is kept for a replica over its connections |
//! | `outbox` | what is to be told to a connected replica |
//! | `coherence` | the core under its lock: who is told of what, and who waits for whom |
//! | `allowance` | how many requests a connection may have under way |
//! | `request` | one request stream: receiving it, applying it once, its reply |
//! | `shares` | what one key may take of what there is for all |
//! | `replies` | answers kept for requests that may come again |
//! | `locks` | who has locked what, and who waits for it |
//! | `orders` | in which order files are touched |
//! | `read`, `pull`, `hashes` | requests that change nothing |
//! | `change`, `names`, `push` | requests that change something |
//! | `known` | whose turn it is to change a node, and what it looked like afterwards |
//! | `tree`, `notice` | parts of the store, and changes made to them by other programs |
//!
//! Nothing a replica sends is believed: what is not a message, or breaks the order of messages, ends its
//! connection; what asks for the impossible gets an errno; what waits or piles up is bounded by
//! the numbers below. Other replicas go on being served.

mod allowance;
mod buffers;
mod change;
mod coherence;
mod connection;
mod hashes;
mod known;
mod leases;
mod locks;
mod names;
mod notice;
mod orders;
mod outbox;
mod pull;
mod push;
mod read;
mod replies;
mod request;
mod session;
mod shares;
#[cfg(test)]
mod tests;
mod tree;

use crate::region::{Epoch, Tick};
use crate::store::{self, Errno, Store};
use crate::transport::Listener;
use crate::wire::{Answer, Attr, Caller, FileId, Kind, Reply, Stale};
use buffers::Buffers;
use coherence::Coherence;
use known::{Known, Nodes};
use leases::Leases;
use locks::LockTable;
use notice::Notices;
use orders::Orders;
use parking_lot::Mutex;
use quinn::VarInt;
use session::Sessions;
use shares::Shares;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tree::Trees;

/// Sessions at one time.
const CLIENTS_MAX: usize = 1024;
/// Open files of a session; `shares` may allow fewer.
const HANDLES_MAX: usize = 65_536;
/// Directories a session has watched.
const OBSERVED_MAX: usize = 65_536;
/// Requests of a session that are worked at, over all of its connections.
const REQUESTS_RUNNING_MAX: usize = 4096;
/// A request of at most so many bytes needs no room of its own.
const REQUEST_BYTES_FREE: usize = 8 << 10;
/// Bytes of the longer requests of a session that are worked at.
const REQUEST_ROOM_BYTES: usize = 16 << 20;
/// Answers of a session at one time that may be as long as a message can be.
const LONG_REPLIES_MAX: usize = 32;
/// Answers of a session at one time that bring hashes.
const HASH_REPLIES_MAX: usize = 128;
/// Calls to the store that may take long, at one time.
const CALLS_MAX: usize = 256;
/// Reading or writing more bytes than this may take long.
const BRIEF_BYTES: u64 = 128 << 10;

/// A connection has so long for its hello.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// A replica that is refused has so long to take that in.
const REFUSAL_MAX: Duration = Duration::from_secs(3);
/// A stream may rest so long in the middle of a request.
const REQUEST_REST_MAX: Duration = Duration::from_secs(60);

// What a connection sends first: streams of a higher priority before others.
const PRIORITY_EVENTS: i32 = 2;
/// Replies that somebody waits for.
const PRIORITY_REPLIES: i32 = 1;
/// Pulls that nobody waits for.
const PRIORITY_BACKGROUND: i32 = 0;

/// The epoch of every region: there are no hand-overs yet.
const EPOCH: Epoch = Epoch(1);

// Why a connection is closed. 0 to 2 belong to the transport.
/// All is said: after a goodbye or a refusal.
const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// The replica has broken the protocol.
const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(16);
/// The replica has made another connection.
const CLOSE_REPLACED: VarInt = VarInt::from_u32(17);
/// The replica's lease has run out, or it does not take its events.
const CLOSE_EXPIRED: VarInt = VarInt::from_u32(18);
/// Too many connections wait to be let in.
const CLOSE_BUSY: VarInt = VarInt::from_u32(19);
/// Resets a reply that could not be sent to its end.
const RESET_UNFINISHED: VarInt = VarInt::from_u32(16);

/// How an authority serves.
#[derive(Clone, Debug)]
pub struct AuthorityOptions {
    /// Refuse changes with `EROFS`.
    pub read_only: bool,
    /// How long a replica may answer from its copy without hearing from here.
    pub lease: Duration,
    /// One replica only: end when it says goodbye or its session is dropped, or when nobody came
    /// within this time.
    pub once: Option<Duration>,
    /// Where to note who holds leases, for the next run: else that one answers changes although a replica
    /// of this run may still read its copy.
    pub leases: Option<PathBuf>,
    /// Remember in which order the parts of files are touched, for those who use them later.
    pub learn: bool,
    /// Where to keep that for next runs: a directory of this user's alone.
    pub orders: Option<PathBuf>,
    /// How long handles and answers are kept for a replica whose connection is gone; at least the lease.
    pub linger: Duration,
}

impl Default for AuthorityOptions {
    fn default() -> Self {
        AuthorityOptions {
            read_only: false,
            lease: Duration::from_secs(10),
            once: None,
            leases: None,
            learn: true,
            orders: None,
            linger: Duration::from_secs(600),
        }
    }
}

/// Serves `store` to those who come to `listener`, until it is closed, or (once) until the one replica is
/// gone; then the listener is closed. Calls to the store block: a runtime with several threads keeps
/// serving meanwhile.
pub async fn serve(listener: Arc<Listener>, store: Arc<dyn Store>, options: AuthorityOptions) {
    run(listener, Arc::new(Service::new(store, options))).await;
}

async fn run(listener: Arc<Listener>, service: Arc<Service>) {
    let mut tasks = JoinSet::new();
    let timer = service.clone();
    tasks.spawn(async move { timer.coherence.run_timer().await });
    tasks.spawn(notice::run(service.clone()));
    let noting = service.clone();
    tasks.spawn(async move { noting.note_leases_again_and_again().await });
    let saving = service.clone();
    tasks.spawn(async move { saving.save_orders_again_and_again().await });
    let once = async {
        match service.options.once {
            Some(patience) => service.sessions.wait_once(patience).await,
            None => std::future::pending().await,
        }
    };
    let mut once = std::pin::pin!(once);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Some((connection, key, grant)) => {
                    tasks.spawn(connection::serve(service.clone(), connection, key, grant));
                }
                None => break,
            },
            () = &mut once => break,
            // Only so that those that are done are not kept.
            Some(_) = tasks.join_next() => {}
        }
    }
    // A task of a connection may still have to close it.
    listener.close();
    tasks.shutdown().await;
    service.blocking(|| service.orders.save()).await;
}

/// Everything that the tasks of one authority share.
struct Service {
    options: AuthorityOptions,
    /// Names this run.
    boot: u64,
    user: Caller,
    trees: Trees,
    notices: Arc<Notices>,
    nodes: Nodes,
    sessions: Sessions,
    coherence: Coherence,
    locks: Arc<LockTable>,
    /// `None` where the next run is not to know.
    leases: Mutex<Option<Leases>>,
    orders: Orders,
    /// For batches of pulls.
    buffers: Arc<Buffers>,
    shares: Shares,
    /// One permit a call to the store that may take long.
    calls: Semaphore,
    /// One permit a slice that is hashed.
    hashing: Semaphore,
    /// Other threads go on where one blocks.
    threads: bool,
    /// A thread makes calls to the store in place.
    in_place: AtomicBool,
}

impl Service {
    fn new(store: Arc<dyn Store>, mut options: AuthorityOptions) -> Service {
        // A session that ends frees those who wait for its replica; so it must not end before the lease.
        options.linger = options.linger.max(options.lease);
        let notices = Arc::new(Notices::default());
        let coherence = Coherence::new(options.lease);
        // With one replica, nobody else can have had its locks in the meantime.
        let locks = Arc::new(LockTable::new(options.once.is_some()));
        let leases = options.leases.as_deref().map(|path| {
            let (leases, granted) = Leases::open(path, options.lease);
            if let Some(granted) = granted {
                tracing::info!(
                    replicas = granted.clients.len(),
                    "an earlier run has granted leases"
                );
                locks.hold_until(granted.until, &granted.clients);
                coherence.hold_until(granted.until, granted.clients);
            }
            leases
        });
        let boot = random();
        let flavor = tokio::runtime::Handle::current().runtime_flavor();
        Service {
            boot,
            user: Caller {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
            trees: Trees::new(store, notices.clone()),
            notices,
            nodes: Nodes::default(),
            sessions: Sessions::new(options.once.is_some(), boot, locks.clone()),
            locks,
            coherence,
            leases: Mutex::new(leases),
            orders: Orders::new(options.learn, options.orders.take()),
            buffers: Buffers::new(pull::BATCH_BYTES as usize),
            shares: Shares::new(),
            calls: Semaphore::new(CALLS_MAX),
            hashing: Semaphore::new(half_the_processors()),
            threads: flavor == tokio::runtime::RuntimeFlavor::MultiThread,
            in_place: AtomicBool::new(false),
            options,
        }
    }

    /// The right to make calls to the store in place that are short if what they need is in memory, as it mostly
    /// is: handing this thread's other work to another thread costs more than they do. Never on two
    /// threads at once, so that a store that hangs stops no more than one.
    fn in_place(&self) -> Option<InPlace<'_>> {
        let taken = self.in_place.swap(true, Ordering::Acquire);
        (!taken).then_some(InPlace(&self.in_place))
    }

    /// Notes who holds leases. Before a replica is let in, and again before the note grows old.
    fn note_leases(&self) {
        if let Some(leases) = &mut *self.leases.lock()
            && let Err(error) = leases.note(self.sessions.clients())
        {
            tracing::warn!("who holds leases cannot be noted: {error}");
        }
    }

    async fn note_leases_again_and_again(&self) {
        while self.leases.lock().is_some() {
            tokio::time::sleep(leases::RENEW_INTERVAL).await;
            self.blocking(|| self.note_leases()).await;
        }
    }

    /// Runs calls to the store that may take long.
    async fn blocking<R>(&self, calls: impl FnOnce() -> R) -> R {
        // The semaphore is never closed; without a permit the calls would be made all the same.
        let _permit = self.calls.acquire().await;
        match self.threads {
            true => tokio::task::block_in_place(calls),
            false => calls(),
        }
    }

    /// A look at a node whose turn is held: whether somebody else has changed it since the last look. Then
    /// everyone who has copies is told, and nobody waits for them.
    fn look(&self, known: &Known, attr: &Attr) {
        let stamp = attr.stamp();
        if known.differs(stamp) {
            tracing::debug!(id = ?known.id, "changed by another program");
            self.coherence
                .change_by_others([(known.id, everything(attr.kind))]);
            known.wrote(None, self.coherence.mark().at);
        }
        known.learn(stamp);
    }
}

/// The right to make calls to the store on this thread. Given back when dropped.
struct InPlace<'a>(&'a AtomicBool);

impl Drop for InPlace<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A random number, of the system's.
fn random() -> u64 {
    // What seeds it are the system's random numbers, and nothing is hashed.
    std::hash::RandomState::new().build_hasher().finish()
}

/// At least one.
fn half_the_processors() -> usize {
    std::thread::available_parallelism().map_or(1, |all| (all.get() / 2).max(1))
}

/// All of a node of this kind. A stamp that differs may always mean other bytes, also where only the
/// time of the last change of anything is another one: times of content can be set.
fn everything(kind: Kind) -> Stale {
    match kind {
        Kind::File => Stale::Bytes {
            start: 0,
            end: u64::MAX,
        },
        _ => Stale::Attributes,
    }
}

fn reply(at: Tick, result: store::Result<Answer>) -> Reply {
    Reply {
        at,
        result: result.map_err(Errno::raw_os_error),
    }
}

/// For a change of attributes.
fn attributes(node: FileId) -> (FileId, Stale) {
    (node, Stale::Attributes)
}
