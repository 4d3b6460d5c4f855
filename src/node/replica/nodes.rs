//! The nodes a replica knows: their numbers, where they were last seen, and what is cached of them.
//!
//! A node is known while the kernel holds references to it, while it is open, and for a while after it was
//! listed. What is cached of it (attributes, names in a directory) holds until the authority says otherwise:
//! `stale_until` is when the newest invalidation was made, and an answer from before that is used once, for
//! whoever asked, but not kept. When a session begins that knows nothing of this replica, all that was told before
//! is before that.

use super::link::Moment;
use super::region::Region;
use super::{NodeNo, ROOT};
use crate::store::{Errno, Result};
use crate::wire::{Attr, FileId, Kind, Name, RelPath, Stamp, Time};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Numbers from here on are given to nodes whose inode number is taken already.
const NUMBERS_OWN: u64 = 1 << 63;
/// Nodes that nobody refers to are kept up to this many, then swept.
const IDLE_MAX: usize = 1 << 16;
/// Names of extended attributes cached of one node, at most.
const XATTR_NAMES_BYTES_MAX: usize = 1024;
/// Names cached of one directory, at most.
const NAMES_MAX: usize = 1 << 18;

/// A node of the tree.
pub(super) struct Node {
    pub no: NodeNo,
    pub id: FileId,
    pub kind: Kind,
    /// References the kernel holds. Raised under the table's read lock, lowered under its write lock.
    pub lookups: AtomicU64,
    pub state: Mutex<NodeState>,
    /// Times that pages are still to be dropped from the kernel's cache.
    pub drops: AtomicU32,
    /// When the kernel was told last to drop some, on the clock of the link; 0: never.
    pub last_drop_ns: AtomicU64,
    /// The region of a regular file, while it is open or a copy of it is kept.
    pub region: Mutex<Option<Arc<Region>>>,
}

/// All names of a directory, and what they stand for, in the order in which they are listed.
pub(super) type WholeListing = Arc<[(Name, NodeNo)]>;

/// What is cached of a node.
pub(super) struct NodeState {
    /// Directory and name under which it was last seen; `None` for the root and for what lost its name.
    pub place: Option<(Arc<Node>, Name)>,
    attr: Option<(Attr, Moment)>,
    stale_until: Moment,
    /// The newest answer about it: see [`crate::wire::ReplicaEvent::Forget`].
    seen: Moment,
    /// Names of the extended attributes, each followed by NUL, and as of when. Kept as long as the attributes
    /// are: the kernel asks for one before each write, programs for some with each listing.
    xattrs: Option<(Vec<u8>, Moment)>,
    /// Of a directory: names known to be there, or not.
    names: HashMap<Name, Option<NodeNo>>,
    /// All of those there are, in order, if they are known.
    listing: Option<WholeListing>,
    /// Counts what made `names` or `listing` other ones.
    names_version: u64,
    /// What the content was like when the copy was last known to be good.
    pub content: Option<Content>,
    /// As of when that was told; `None` if on the clock of an earlier session.
    content_at: Option<Moment>,
}

/// As [`Stamp`], but the time of last change is left out where this replica, or an announced change of
/// attributes alone, has touched it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    size: u64,
    mtime: Time,
    ctime: Option<Time>,
}

impl Content {
    /// Like nothing that there is.
    const UNKNOWN: Content = Content {
        size: u64::MAX,
        mtime: Time { secs: 0, nanos: 0 },
        ctime: None,
    };

    fn of(stamp: Stamp) -> Content {
        Content {
            size: stamp.size,
            mtime: stamp.mtime,
            ctime: Some(stamp.ctime),
        }
    }

    fn matches(&self, stamp: Stamp) -> bool {
        self.size == stamp.size
            && self.mtime == stamp.mtime
            && self.ctime.is_none_or(|ctime| ctime == stamp.ctime)
    }
}

impl NodeState {
    fn forget_names(&mut self) {
        self.names.clear();
        self.forget_listing();
    }

    fn forget_listing(&mut self) {
        self.listing = None;
        self.names_version += 1;
    }
}

/// What a name stands for, as far as it is cached.
pub(super) enum Cached {
    Node(Arc<Node>),
    Absent,
    Unknown,
}

impl Node {
    /// Nothing is cached of it; what was told before `stale_until` will not be.
    fn new(
        no: NodeNo,
        id: FileId,
        kind: Kind,
        place: Option<(Arc<Node>, Name)>,
        stale_until: Moment,
    ) -> Arc<Node> {
        Arc::new(Node {
            no,
            id,
            kind,
            lookups: AtomicU64::new(0),
            drops: AtomicU32::new(0),
            last_drop_ns: AtomicU64::new(0),
            state: Mutex::new(NodeState {
                place,
                attr: None,
                stale_until,
                seen: Moment::start(stale_until.generation),
                xattrs: None,
                names: HashMap::new(),
                listing: None,
                names_version: 0,
                content: None,
                content_at: None,
            }),
            region: Mutex::new(None),
        })
    }

    /// The path at which it was last seen.
    pub fn path(&self) -> Result<RelPath> {
        let mut names = Vec::new();
        let mut place = self.state.lock().place.clone();
        if place.is_none() && self.no != ROOT {
            return Err(Errno::STALE);
        }
        while let Some((dir, name)) = place {
            names.push(name);
            if names.len() > crate::wire::PATH_COMPONENTS_MAX {
                return Err(Errno::STALE);
            }
            place = dir.state.lock().place.clone();
        }
        names.iter().rev().try_fold(RelPath::root(), |path, name| {
            path.join(name).ok_or(Errno::NAMETOOLONG)
        })
    }

    /// The path for messages: of a node that has lost its name, the name it had is not known.
    pub fn path_or_unnamed(&self) -> RelPath {
        self.path().unwrap_or_default()
    }

    /// How requests name it.
    pub fn to_wire(&self) -> Result<crate::wire::Node> {
        Ok(crate::wire::Node {
            id: self.id,
            path: self.path()?,
        })
    }

    /// How requests name it where an open handle is what counts.
    pub fn to_wire_open(&self) -> crate::wire::Node {
        crate::wire::Node {
            id: self.id,
            path: self.path_or_unnamed(),
        }
    }

    /// Attributes, if they are cached.
    pub fn cached_attr(&self) -> Option<Attr> {
        self.state.lock().attr.map(|(attr, _)| attr)
    }

    /// An answer about it was made at `at`. To be said of each answer with which the authority subscribes this replica: it
    /// would keep the subscription when the node is forgotten, for an answer that might be on its way
    /// ([`crate::wire::ReplicaEvent::Forget`]).
    pub fn saw(&self, at: Moment) {
        let mut state = self.state.lock();
        state.seen = state.seen.max(at);
    }

    /// Takes in attributes from an answer made at `at`. Returns false if content was cached that these
    /// attributes show to have changed unannounced: the copy is to be dropped.
    pub fn adopt(&self, attr: &Attr, at: Moment) -> bool {
        let mut state = self.state.lock();
        state.seen = state.seen.max(at);
        if at < state.stale_until || state.attr.is_some_and(|(_, known)| at < known) {
            return true;
        }
        if (state.attr).is_some_and(|(known, _)| known.ctime != attr.ctime) {
            state.xattrs = None; // changed unannounced
        }
        state.attr = Some((*attr, at));
        let good = state
            .content
            .is_none_or(|content| content.matches(attr.stamp()));
        state.content = Some(Content::of(attr.stamp()));
        state.content_at = Some(at);
        good
    }

    /// As [`Node::adopt`], for the answer to a change of this replica's own.
    pub fn adopt_own(&self, attr: &Attr, at: Moment) {
        let mut state = self.state.lock();
        state.seen = state.seen.max(at);
        if at >= state.stale_until && state.attr.is_none_or(|(_, known)| known <= at) {
            state.attr = Some((*attr, at));
            state.content = Some(Content::of(attr.stamp()));
            state.content_at = Some(at);
        }
    }

    /// What the content was like when the copy was last known to be good, and as of when.
    pub fn content(&self) -> Option<(Stamp, Moment)> {
        let state = self.state.lock();
        let Content { size, mtime, ctime } = state.content?;
        let stamp = Stamp {
            size,
            mtime,
            ctime: ctime?,
        };
        Some((stamp, state.content_at?))
    }

    /// This replica is about to change, or has changed, attributes but not content.
    pub fn touch(&self) {
        let mut state = self.state.lock();
        state.attr = None;
        state.xattrs = None;
        if let Some(content) = &mut state.content {
            content.ctime = None;
        }
    }

    /// The authority says that attributes, names, or also bytes changed at `at`.
    pub fn invalidate(&self, at: Moment, bytes: bool) {
        let mut state = self.state.lock();
        state.stale_until = state.stale_until.max(at);
        if state.attr.is_some_and(|(_, known)| known < at) {
            state.attr = None;
        }
        if state.xattrs.as_ref().is_some_and(|(_, known)| *known < at) {
            state.xattrs = None;
        }
        state.forget_names();
        if bytes {
            // Announced, and so taken in exactly: the next attributes are not a surprise.
            state.content = None;
        } else if let Some(content) = &mut state.content {
            content.ctime = None;
        }
    }

    /// Everything cached has to be asked for again, in a session of this generation.
    fn reset(&self, generation: u64) {
        let mut state = self.state.lock();
        state.attr = None;
        state.xattrs = None;
        state.stale_until = Moment::start(generation);
        state.seen = Moment::start(generation);
        // What was announced was taken in, but not what it was like then: what has changed since would not show.
        state.content.get_or_insert(Content::UNKNOWN);
        state.content_at = None;
        state.forget_names();
    }

    /// The newest answer about it.
    pub fn seen(&self) -> Moment {
        self.state.lock().seen
    }

    /// What `look` finds in the names of the extended attributes, if they are cached.
    pub fn cached_xattrs<R>(&self, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let state = self.state.lock();
        state.xattrs.as_ref().map(|(names, _)| look(names))
    }

    /// Remembers the names of the extended attributes, from an answer made at `at`.
    pub fn learn_xattrs(&self, names: &[u8], at: Moment) {
        let mut state = self.state.lock();
        state.seen = state.seen.max(at);
        if at >= state.stale_until && names.len() <= XATTR_NAMES_BYTES_MAX {
            state.xattrs = Some((names.to_vec(), at));
        }
    }

    /// What a name in this directory stands for.
    fn cached_name(&self, name: &Name) -> Option<Option<NodeNo>> {
        self.state.lock().names.get(name).copied()
    }

    /// Remembers what a name stands for, from an answer made at `at`. False if it stood for something else and
    /// nobody has said so: the kernel may still think that.
    pub fn learn_name(&self, name: &Name, node: Option<NodeNo>, at: Moment) -> bool {
        let mut state = self.state.lock();
        state.seen = state.seen.max(at);
        if at < state.stale_until {
            return true;
        }
        if state.names.len() >= NAMES_MAX {
            state.names.clear();
        }
        let before = state.names.insert(name.clone(), node);
        if before.is_none() && node.is_some() {
            state.listing = None; // it is not in there
        }
        let same = before.is_none_or(|before| before == node);
        if !same {
            state.forget_listing();
        }
        same
    }

    /// Forgets what a name stands for.
    pub fn forget_name(&self, name: &Name) {
        let mut state = self.state.lock();
        state.names.remove(name);
        state.forget_listing();
    }

    /// Forgets all names.
    pub fn forget_names(&self) {
        self.state.lock().forget_names();
    }

    /// The whole listing, if it is known, and [`Node::names_version`].
    pub fn kept_listing(&self) -> Option<(WholeListing, u64)> {
        let state = self.state.lock();
        Some((state.listing.clone()?, state.names_version))
    }

    /// Changes whenever a name comes to stand for something else.
    pub fn names_version(&self) -> u64 {
        self.state.lock().names_version
    }

    /// Remembers a whole listing that began when [`Node::names_version`] was `version`.
    pub fn keep_listing(&self, listing: WholeListing, version: u64) {
        let mut state = self.state.lock();
        if state.names_version == version {
            state.listing = Some(listing);
        }
    }

    /// Whether it is in the directory under this name, as far as known.
    pub fn is_at(&self, dir: &Node, name: &Name) -> bool {
        let state = self.state.lock();
        state
            .place
            .as_ref()
            .is_some_and(|(at, called)| at.no == dir.no && called == name)
    }

    /// The newest change of it that was announced.
    pub fn stale_until(&self) -> Moment {
        self.state.lock().stale_until
    }

    /// Whether no name of it is known.
    pub fn has_no_place(&self) -> bool {
        self.no != ROOT && self.state.lock().place.is_none()
    }

    /// It was seen under this name.
    pub fn set_place(&self, dir: &Arc<Node>, name: &Name) {
        if self.no != ROOT && self.no != dir.no {
            self.state.lock().place = Some((dir.clone(), name.clone()));
        }
    }

    /// It has lost the name it was known by.
    pub fn unset_place(&self) {
        self.state.lock().place = None;
    }
}

/// All nodes a replica knows.
pub(super) struct Nodes {
    table: RwLock<Table>,
    /// The newest change of a node that was not known. Locked within the table.
    unknown_until: Mutex<Moment>,
}

struct Table {
    by_no: HashMap<NodeNo, Arc<Node>>,
    by_id: HashMap<FileId, NodeNo>,
    next_own: u64,
    /// Nodes were swept when there were this many.
    swept_at: usize,
}

impl Nodes {
    /// The root and nothing else, in a session of this generation.
    pub fn new(root: &Attr, generation: u64) -> Nodes {
        let start = Moment::start(generation);
        let node = Node::new(ROOT, root.id, root.kind, None, start);
        node.lookups.store(1, Ordering::Relaxed);
        Nodes {
            unknown_until: Mutex::new(start),
            table: RwLock::new(Table {
                by_no: HashMap::from([(ROOT, node)]),
                by_id: HashMap::from([(root.id, ROOT)]),
                next_own: NUMBERS_OWN,
                swept_at: 0,
            }),
        }
    }

    /// The node with this number.
    pub fn get(&self, no: NodeNo) -> Result<Arc<Node>> {
        self.table
            .read()
            .by_no
            .get(&no)
            .cloned()
            .ok_or(Errno::STALE)
    }

    /// The node with this identity of which the authority says that it changed at `at`. Where it is not known, an
    /// older answer that makes it known may be on its way: what that says is not kept.
    pub fn changed(&self, id: FileId, at: Moment) -> Option<Arc<Node>> {
        let table = self.table.read();
        let no = table.by_id.get(&id);
        if no.is_none() {
            let mut unknown_until = self.unknown_until.lock();
            *unknown_until = at.max(*unknown_until);
        }
        no.and_then(|no| table.by_no.get(no)).cloned()
    }

    /// A session of this generation begins: nothing is kept that another one has told. Returns all nodes there are.
    pub fn reset(&self, generation: u64) -> Vec<Arc<Node>> {
        let table = self.table.write();
        *self.unknown_until.lock() = Moment::start(generation);
        // Those that are made known from here on are of this session.
        let nodes: Vec<_> = table.by_no.values().cloned().collect();
        drop(table);
        nodes.iter().for_each(|node| node.reset(generation));
        nodes
    }

    /// The node with this identity, if it is known.
    pub fn by_id(&self, id: FileId) -> Option<Arc<Node>> {
        let table = self.table.read();
        table
            .by_id
            .get(&id)
            .and_then(|no| table.by_no.get(no))
            .cloned()
    }

    /// What `name` in `dir` stands for, as far as it is cached.
    pub fn cached(&self, dir: &Node, name: &Name) -> Cached {
        match dir.cached_name(name) {
            Some(Some(no)) => self.get(no).map_or(Cached::Unknown, Cached::Node),
            Some(None) => Cached::Absent,
            None => Cached::Unknown,
        }
    }

    /// The node that `attr` is of, made known if it was not; seen as `name` in `dir`.
    pub fn know(&self, attr: &Attr, dir: &Arc<Node>, name: &Name) -> Arc<Node> {
        if let Some(node) = self.by_id(attr.id) {
            node.set_place(dir, name);
            return node;
        }
        let mut table = self.table.write();
        if let Some(node) = table
            .by_id
            .get(&attr.id)
            .and_then(|no| table.by_no.get(no))
            .cloned()
        {
            drop(table);
            node.set_place(dir, name);
            return node;
        }
        let wanted = NodeNo(attr.id.ino);
        let no = if wanted <= ROOT || table.by_no.contains_key(&wanted) || wanted.0 >= NUMBERS_OWN {
            table.next_own += 1;
            NodeNo(table.next_own)
        } else {
            wanted
        };
        let place = Some((dir.clone(), name.clone()));
        let node = Node::new(no, attr.id, attr.kind, place, *self.unknown_until.lock());
        table.by_no.insert(no, node.clone());
        table.by_id.insert(attr.id, no);
        node
    }

    /// The kernel refers to it once more.
    pub fn refer(&self, node: &Arc<Node>) {
        let table = self.table.read();
        node.lookups.fetch_add(1, Ordering::Relaxed);
        if table.by_no.contains_key(&node.no) {
            return;
        }
        // It was swept between being found and being referred to: it is known again.
        drop(table);
        let mut table = self.table.write();
        if !table.by_id.contains_key(&node.id) && !table.by_no.contains_key(&node.no) {
            table.by_no.insert(node.no, node.clone());
            table.by_id.insert(node.id, node.no);
        }
    }

    /// The kernel refers to it so many times less. Returns the node if it is not known any more.
    pub fn unrefer(&self, no: NodeNo, lookups: u64) -> Option<Arc<Node>> {
        let mut table = self.table.write();
        let node = table.by_no.get(&no)?.clone();
        let left = node.lookups.load(Ordering::Relaxed).saturating_sub(lookups);
        node.lookups.store(left, Ordering::Relaxed);
        if left > 0 || no == ROOT || node.is_busy() {
            return None;
        }
        table.remove(&node);
        Some(node)
    }

    /// Forgets nodes that nobody refers to, when there are many. Returns those.
    pub fn sweep(&self) -> Vec<Arc<Node>> {
        {
            let table = self.table.read();
            if table.by_no.len() < table.swept_at + IDLE_MAX {
                return Vec::new();
            }
        }
        let mut table = self.table.write();
        let idle: Vec<_> = (table.by_no.values())
            .filter(|node| {
                node.no != ROOT
                    && node.lookups.load(Ordering::Relaxed) == 0
                    && Arc::strong_count(node) == 1
                    && !node.is_busy()
            })
            .cloned()
            .collect();
        for node in &idle {
            table.remove(node);
        }
        table.swept_at = table.by_no.len();
        idle
    }

    /// All nodes.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.table.read().by_no.values().cloned().collect()
    }
}

impl Node {
    /// Whether a region keeps it.
    fn is_busy(&self) -> bool {
        self.region
            .lock()
            .as_ref()
            .is_some_and(|region| region.is_busy())
    }
}

impl Table {
    fn remove(&mut self, node: &Node) {
        self.by_no.remove(&node.no);
        if self.by_id.get(&node.id) == Some(&node.no) {
            self.by_id.remove(&node.id);
        }
    }
}

#[cfg(test)]
mod tests;
