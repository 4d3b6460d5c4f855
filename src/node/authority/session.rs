//! What is kept for a replica over any number of connections: its open files, its answers, and what it is
//! subscribed to.
//!
//! ```text
//!               attach                    connection lost
//!   (unknown) ─────────▶ connected ──────────────────────────▶ detached ── linger ──▶ (unknown)
//!                          │  ▲ ▲                                │                        ▲
//!                          │  │ └── attach, the older connection │                        │
//!                          │  │     is closed                   │                        │
//!                          │  └───────────────── attach ────────┘                        │
//!                          └──────────────────── Goodbye ─────────────────────────────────┘
//! ```
//!
//! Lock order: the table of sessions, a session's link, the locks, the coherence.

use super::coherence::Coherence;
use super::known::{Known, Nodes};
use super::locks::LockTable;
use super::outbox::Outbox;
use super::replies::Replies;
use super::shares::{PARTS_PER_KEY_MAX, SESSIONS_PER_KEY_MAX, Share, Taken, room};
use super::tree::Tree;
use super::{CLIENTS_MAX, CLOSE_REPLACED, HANDLES_MAX, OBSERVED_MAX, REQUESTS_RUNNING_MAX};
use super::{HASH_REPLIES_MAX, LONG_REPLIES_MAX, REQUEST_ROOM_BYTES};
use crate::region::ClientId;
use crate::store::{Errno, StoreFile};
use crate::transport::PublicKey;
use crate::wire::{Access, FileId, HandleId, Hello, Node, ReadRequest, Refusal, RelPath};
use parking_lot::{Mutex, RwLock};
use quinn::VarInt;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

/// An open file of a session.
pub(super) struct Handle {
    pub node: Arc<Known>,
    pub file: Box<dyn StoreFile>,
    pub access: Access,
    pub _taken: Taken,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.node.closed(self);
    }
}

/// What is kept for one replica.
pub(super) struct Session {
    pub client: ClientId,
    key: PublicKey,
    pub share: Arc<Share>,
    subtree: RelPath,
    pub tree: Arc<Tree>,
    handles: RwLock<HashMap<HandleId, Arc<Handle>>>,
    /// Of all sessions: see [`Sessions`].
    handle_numbers: Arc<AtomicU64>,
    pub replies: Replies,
    observed: Mutex<HashSet<FileId>>,
    /// One permit a request that is worked at.
    pub running: Arc<Semaphore>,
    /// One permit a byte of pushes being received.
    pub push_room: Semaphore,
    /// One permit a byte read for pulls and not yet sent: those somebody waits for, and the others.
    pub pull_room: [Semaphore; 2],
    /// For who asks for hashes.
    pub hashing: Semaphore,
    /// One permit a byte of the longer requests.
    pub request_room: Semaphore,
    /// One permit an answer that may be long, and one that brings hashes.
    long_replies: Semaphore,
    hash_replies: Semaphore,
    /// It has got another connection.
    again: Notify,
    link: Mutex<Link>,
}

struct Link {
    /// Counts the connections.
    generation: u64,
    connection: Option<quinn::Connection>,
    /// When it was last attached or detached.
    since: Instant,
}

impl Session {
    /// The `nth` of its key.
    fn new(
        hello: &Hello,
        (key, share): (PublicKey, Arc<Share>),
        (tree, handle_numbers): (Arc<Tree>, Arc<AtomicU64>),
        nth: usize,
    ) -> Session {
        Session {
            client: hello.client,
            key,
            share,
            subtree: hello.subtree.clone(),
            tree,
            handles: RwLock::default(),
            handle_numbers,
            replies: Replies::default(),
            observed: Mutex::default(),
            running: Arc::new(Semaphore::new(REQUESTS_RUNNING_MAX)),
            push_room: Semaphore::new(room(nth)),
            pull_room: [(); 2].map(|()| Semaphore::new(room(nth) / 2)),
            hashing: Semaphore::new(1),
            request_room: Semaphore::new(REQUEST_ROOM_BYTES),
            long_replies: Semaphore::new(LONG_REPLIES_MAX),
            hash_replies: Semaphore::new(HASH_REPLIES_MAX),
            again: Notify::new(),
            link: Mutex::new(Link {
                generation: 0,
                connection: None,
                since: Instant::now(),
            }),
        }
    }

    /// An open file; `EBADF` if this session has none of that number.
    pub fn handle(&self, id: HandleId) -> Result<Arc<Handle>, Errno> {
        self.handles.read().get(&id).cloned().ok_or(Errno::BADF)
    }

    /// `EMFILE` where no more files can be opened.
    pub fn check_room(&self) -> Result<(), Errno> {
        match self.handles.read().len() < HANDLES_MAX {
            true => Ok(()),
            false => Err(Errno::MFILE),
        }
    }

    /// Keeps an open file. `EMFILE`, `ENFILE`.
    pub fn keep(
        &self,
        node: Arc<Known>,
        file: Box<dyn StoreFile>,
        access: Access,
    ) -> Result<(HandleId, Arc<Handle>), Errno> {
        let handle = Arc::new(Handle {
            node,
            file,
            access,
            _taken: self.share.handle()?,
        });
        let mut handles = self.handles.write();
        if handles.len() >= HANDLES_MAX {
            return Err(Errno::MFILE);
        }
        let id = HandleId {
            number: self.handle_numbers.fetch_add(1, Ordering::Relaxed),
            file: handle.node.id,
        };
        handles.insert(id, handle.clone());
        drop(handles);
        handle.node.opened(&handle);
        Ok((id, handle))
    }

    /// Closes a file. `EBADF`.
    pub fn close(&self, id: HandleId) -> Result<(), Errno> {
        let closed = self.handles.write().remove(&id);
        closed.map(drop).ok_or(Errno::BADF)
    }

    /// The replica now has copies from this directory. True if it had none before. Asks the store.
    pub fn observe(&self, dir: &Node, nodes: &Nodes) -> bool {
        {
            let mut observed = self.observed.lock();
            if observed.contains(&dir.id) || observed.len() >= OBSERVED_MAX {
                return false;
            }
            observed.insert(dir.id);
        }
        self.tree.observe(dir, nodes);
        true
    }

    /// The replica has no copies from this directory any more, if it ever had.
    pub fn unobserve(&self, dir: FileId) {
        if self.observed.lock().remove(&dir) {
            self.tree.unobserve(dir);
        }
    }

    /// Runs `take` if this is still the session's connection: what a replaced one has to say means nothing
    /// any more.
    pub fn while_current(&self, generation: u64, take: impl FnOnce()) {
        let link = self.link.lock();
        if link.generation == generation {
            take();
        }
    }

    /// The right to make the answer to a request, if that may be long. To be kept until the answer is taken, so
    /// that one who takes none has few of them made.
    pub async fn turn(&self, request: &ReadRequest) -> Option<SemaphorePermit<'_>> {
        let turns = match request {
            ReadRequest::Hashes { .. } => &self.hash_replies,
            ReadRequest::ReadDir { .. }
            | ReadRequest::Order { .. }
            | ReadRequest::GetXattr { .. }
            | ReadRequest::ListXattr { .. } => &self.long_replies,
            _ => return None,
        };
        // Never closed.
        turns.acquire().await.ok()
    }

    /// Waits until it gets another connection than it has now.
    pub fn come_again(&self) -> impl Future<Output = ()> {
        self.again.notified()
    }

    /// Takes away everything that holds resources. Only after locks were given back is it let go of.
    fn take_held(&self) -> Held {
        Held {
            _handles: std::mem::take(&mut *self.handles.write()),
            observed: std::mem::take(&mut *self.observed.lock()),
            tree: self.tree.clone(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A request may have come late.
        drop(self.take_held());
    }
}

/// What a session held: let go of when dropped, which asks the store.
struct Held {
    _handles: HashMap<HandleId, Arc<Handle>>,
    observed: HashSet<FileId>,
    tree: Arc<Tree>,
}

impl Drop for Held {
    fn drop(&mut self) {
        for dir in &self.observed {
            self.tree.unobserve(*dir);
        }
    }
}

/// A connection was attached to its session.
#[derive(Clone)]
pub(super) struct Attachment {
    pub session: Arc<Session>,
    pub outbox: Arc<Outbox>,
    /// Which of the session's connections this is.
    pub generation: u64,
    /// The session and its subscriptions were still there.
    pub resumed: bool,
}

/// How many sessions of a key are connected.
fn connected(table: &HashMap<ClientId, Arc<Session>>, key: PublicKey) -> usize {
    let of_key = table.values().filter(|session| session.key == key);
    let connected = of_key.filter(|session| session.link.lock().connection.is_some());
    connected.count()
}

/// All sessions.
pub(super) struct Sessions {
    table: Mutex<HashMap<ClientId, Arc<Session>>>,
    clients_max: usize,
    /// Numbers for handles: never the same for two sessions. They begin at a random one, so that one of an earlier run,
    /// in a request that is repeated, does not name another file.
    handle_numbers: Arc<AtomicU64>,
    locks: Arc<LockTable>,
    /// How many sessions have begun, and how many of them have ended.
    counts: watch::Sender<(u64, u64)>,
}

impl Sessions {
    /// With `once`, only one session is ever let in. `boot` is a random number that names this run.
    pub fn new(once: bool, boot: u64, locks: Arc<LockTable>) -> Sessions {
        Sessions {
            locks,
            handle_numbers: Arc::new(AtomicU64::new(boot)),
            table: Mutex::default(),
            clients_max: if once { 1 } else { CLIENTS_MAX },
            counts: watch::Sender::new((0, 0)),
        }
    }

    /// The tree of the session that `hello` means, if there is one.
    pub fn tree(&self, hello: &Hello) -> Option<Arc<Tree>> {
        let table = self.table.lock();
        let session = table.get(&hello.client)?;
        (session.subtree == hello.subtree).then(|| session.tree.clone())
    }

    /// Who has a session.
    pub fn clients(&self) -> BTreeSet<ClientId> {
        self.table.lock().keys().copied().collect()
    }

    /// Attaches a connection to its session, a new one if there is none.
    pub fn attach(
        &self,
        hello: &Hello,
        (key, share): (PublicKey, Arc<Share>),
        tree: Arc<Tree>,
        connection: &quinn::Connection,
        coherence: &Coherence,
    ) -> Result<Attachment, Refusal> {
        let mut evicted = None;
        let mut table = self.table.lock();
        let session = match table.get(&hello.client) {
            Some(session) if session.key != key => return Err(Refusal::Client),
            Some(session) if session.subtree != hello.subtree => {
                return Err(Refusal::Subtree(Errno::INVAL.raw_os_error()));
            }
            Some(session) => session.clone(),
            None => {
                evicted = self.make_room(&mut table, (key, &hello.subtree), coherence)?;
                let nth = connected(&table, key) + 1;
                let numbers = self.handle_numbers.clone();
                let session = Arc::new(Session::new(hello, (key, share), (tree, numbers), nth));
                table.insert(hello.client, session.clone());
                self.counts.send_modify(|(begun, _)| *begun += 1);
                session
            }
        };
        let room = room(connected(&table, key) + 1);
        connection.set_receive_window(VarInt::from_u32(room as u32));
        connection.set_send_window(room as u64);
        session.again.notify_waiters();
        let mut link = session.link.lock();
        link.generation += 1;
        link.since = Instant::now();
        if let Some(older) = link.connection.replace(connection.clone()) {
            older.close(CLOSE_REPLACED, b"the replica has connected anew");
        }
        let outbox = Arc::new(Outbox::default());
        let attachment = Attachment {
            resumed: coherence.attach(session.client, outbox.clone()),
            outbox,
            generation: link.generation,
            session: session.clone(),
        };
        // One that begins anew opens its files anew. Its answers stay: a request that was applied and
        // comes again must not be applied twice.
        let held = (!attachment.resumed).then(|| session.take_held());
        drop(link);
        drop(table);
        drop((evicted, held));
        Ok(attachment)
    }

    /// A new session is allowed only where there is room, for all and for its key, at worst that of one whose
    /// replica has been away for longer than its lease: that one is returned.
    fn make_room(
        &self,
        table: &mut HashMap<ClientId, Arc<Session>>,
        (key, subtree): (PublicKey, &RelPath),
        coherence: &Coherence,
    ) -> Result<Option<Arc<Session>>, Refusal> {
        if self.clients_max == 1 && self.counts.borrow().0 > 0 {
            return Err(Refusal::Full);
        }
        let of_key = |session: &&Arc<Session>| session.key == key;
        let mut parts: HashSet<&RelPath> = (table.values().filter(of_key))
            .map(|session| &session.subtree)
            .collect();
        parts.insert(subtree);
        let key_is_full = table.values().filter(of_key).count() >= SESSIONS_PER_KEY_MAX
            || parts.len() > PARTS_PER_KEY_MAX;
        if table.len() < self.clients_max && !key_is_full {
            return Ok(None);
        }
        let away = |session: &Arc<Session>| {
            let link = session.link.lock();
            let away = link.since.elapsed();
            (link.connection.is_none() && away >= coherence.lease()).then_some(away)
        };
        let some = table.values().filter(|s| !key_is_full || of_key(s));
        let longest = some.filter_map(|s| Some((away(s)?, s.client)));
        let (_, client) = longest.max().ok_or(Refusal::Full)?;
        self.ended(client, coherence);
        let ended = table.remove(&client);
        // Whoever waits for its replica need not.
        ended
            .iter()
            .for_each(|session| session.again.notify_waiters());
        Ok(ended)
    }

    /// A connection is gone. False if another one has taken its place.
    pub fn detach(&self, attachment: &Attachment, coherence: &Coherence) -> bool {
        let session = &attachment.session;
        let mut link = session.link.lock();
        coherence.detach(session.client, &attachment.outbox);
        if link.generation != attachment.generation {
            return false;
        }
        link.connection = None;
        link.since = Instant::now();
        true
    }

    /// What a session held is let go of, unless it has got another connection in the meantime.
    pub fn let_go(&self, attachment: &Attachment) {
        let session = &attachment.session;
        let link = session.link.lock();
        let held = (link.generation == attachment.generation).then(|| session.take_held());
        drop(link);
        drop(held);
    }

    /// Ends a session, unless it has got another connection in the meantime.
    pub fn end(&self, attachment: &Attachment, coherence: &Coherence) {
        let session = &attachment.session;
        let mut table = self.table.lock();
        if session.link.lock().generation != attachment.generation {
            return;
        }
        let current = table.get(&session.client);
        if current.is_some_and(|current| Arc::ptr_eq(current, session)) {
            table.remove(&session.client);
            self.ended(session.client, coherence);
            drop(table);
            drop(session.take_held());
        }
    }

    /// A session is taken from the table, which is locked.
    fn ended(&self, client: ClientId, coherence: &Coherence) {
        coherence.gone(client);
        self.locks.gone(client);
        self.counts.send_modify(|(_, ended)| *ended += 1);
    }

    /// Waits until a session has ended, or until none has begun within `patience`.
    pub async fn wait_once(&self, patience: Duration) {
        let mut counts = self.counts.subscribe();
        let begun = counts.wait_for(|(begun, _)| *begun > 0);
        if tokio::time::timeout(patience, begun).await.is_ok() {
            // An error means that nobody could end one any more.
            let _ = counts.wait_for(|(_, ended)| *ended > 0).await;
        }
    }
}
