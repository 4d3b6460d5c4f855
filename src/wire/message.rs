//! The messages of version 1. `tests/golden` holds the bytes of each; a change to a message that
//! has been released needs a new [`super::Version`].

use super::Name;
use super::node::*;
use crate::region::{ClientId, Epoch, LockKey, LockRun, ORDER_RUNS_MAX, Tick};
use crate::units::{ByteRange, PageRange};
use bincode::{Decode, Encode};

/// An event from the replica on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ReplicaEvent {
    /// Asks for the lease to be renewed; `sent` comes back in the answer.
    Renew {
        /// Any number that grows, chosen by the replica.
        sent: u64,
    },
    /// The change was taken in: what it made stale is no longer in this replica's copy, nor in
    /// its kernel's.
    Taken {
        /// [`AuthorityEvent::Invalidate::change`].
        change: u64,
    },
    /// The replica holds nothing any more of these nodes. The stamp is the newest it has seen of
    /// the node: a subscription granted later stays.
    Forget(Vec<(FileId, Tick)>),
    /// The mount is gone: the session can be dropped at once.
    Goodbye,
}

/// An event from the authority on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AuthorityEvent {
    /// The lease runs anew from when the replica sent this renewal.
    Renewed {
        /// From [`ReplicaEvent::Renew`].
        sent: u64,
    },
    /// A node has changed by somebody else's hand. To be answered by [`ReplicaEvent::Taken`].
    Invalidate {
        /// Names the change in the answer.
        change: u64,
        /// The node.
        id: FileId,
        /// When it changed, on the authority's clock of changes.
        at: Tick,
        /// What of it.
        what: Stale,
    },
}

/// What of a node is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Stale {
    /// Attributes, and for a directory its entries as well.
    Attributes,
    /// Bytes of a region in this range, and the attributes. `u64::MAX` as end: to the end.
    Bytes {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
}

/// Names an open file of this client at the authority. A request may be repeated to an authority that has begun anew
/// since the file was opened: what a handle of an earlier run named is nothing there, and never another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct HandleId {
    /// The authority counts them, in each run from a random number on.
    pub number: u64,
    /// The file that was opened; with another one the number is refused with `EBADF`.
    pub file: FileId,
}

/// Orders a client's requests that change something. The authority keeps its answer under this
/// number until a request arrives whose `answered` is not below it, so that a request repeated over
/// a new connection is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Sequence {
    /// Grows with each new request of a client; a repetition has the same.
    pub number: u64,
    /// Every request below this has been answered, as the client saw it.
    pub answered: u64,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Changes nothing; may be repeated at will.
    Read(ReadRequest),
    /// Changes something.
    Change(Sequence, ChangeRequest),
}

/// A request that changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ReadRequest {
    /// `Reply::Attr` of the entry.
    Lookup {
        /// The directory.
        dir: Node,
        /// The entry.
        name: Name,
    },
    /// `Reply::Attr`.
    GetAttr {
        /// The node.
        node: Node,
        /// An open handle of it, if there is one: works after the last name is gone.
        handle: Option<HandleId>,
    },
    /// `Reply::Bytes`: the content of a symbolic link.
    ReadLink {
        /// The link.
        node: Node,
    },
    /// `Reply::Entries`, empty at the end.
    ReadDir {
        /// The directory.
        dir: Node,
        /// 0, or [`DirEntry::cursor`] to go on after.
        cursor: u64,
        /// With the names of the entries' extended attributes.
        xattrs: bool,
    },
    /// `Reply::Opened`. To be followed by `Close` one day.
    Open {
        /// A regular file.
        node: Node,
        /// What for.
        access: Access,
    },
    /// `Reply::Done`.
    Close {
        /// The handle, which means nothing afterwards.
        handle: HandleId,
    },
    /// `Reply::Pulled` and its frames.
    Pull {
        /// A handle of the region.
        handle: HandleId,
        /// First byte.
        start: u64,
        /// One past the last byte; at most [`super::TRANSFER_BYTES_MAX`] after `start`.
        end: u64,
        /// Somebody waits for it: goes before what nobody waits for.
        demand: bool,
        /// Frames may be compressed.
        compress: bool,
    },
    /// `Reply::Offset`: SEEK_DATA or SEEK_HOLE.
    Seek {
        /// A handle of the region.
        handle: HandleId,
        /// From here.
        offset: u64,
        /// The next data, or else the next hole.
        data: bool,
    },
    /// `Reply::Bytes`.
    GetXattr {
        /// The node.
        node: Node,
        /// Name of the attribute: 1 to 255 bytes, no NUL.
        name: Vec<u8>,
    },
    /// `Reply::Bytes`: names, each followed by NUL.
    ListXattr {
        /// The node.
        node: Node,
    },
    /// `Reply::StatFs`.
    StatFs,
    /// `Reply::Done` if since `after` nobody but the client `by` has changed the content of a regular file, as
    /// far as the authority knows; `ESTALE` if somebody has, or it does not know. For a mount that finds what
    /// an earlier one of its machine had not pushed yet. Ticks are of one run of the authority only.
    Only {
        /// The file.
        node: Node,
        /// Of an answer to that client.
        after: Tick,
        /// The client.
        by: ClientId,
    },
    /// `Reply::Order`: in which order the region was touched by those who used it earlier.
    Order {
        /// A handle of the region.
        handle: HandleId,
    },
    /// `Reply::Done`: programs on the replica's machine have touched this, in this order. For those who use the
    /// region later.
    Touched {
        /// A handle of the region.
        handle: HandleId,
        /// At most [`ORDER_RUNS_MAX`].
        runs: Vec<Pages>,
    },
    /// `Reply::Hashed`: what the bytes of some extents hash to, unit by unit. For a replica that holds bytes which
    /// may still be the region's.
    Hashes {
        /// A handle of the region.
        handle: HandleId,
        /// Ascending, not empty, apart; each begins at a page. At most [`super::HASH_EXTENTS_MAX`] of them and
        /// [`super::HASHED_BYTES_MAX`] bytes in all.
        extents: Vec<Extent>,
        /// Bytes of a unit: whole pages, at most [`super::HASH_UNIT_BYTES_MAX`]. Each extent is cut into units
        /// from its start; the last may be shorter.
        unit: u32,
    },
    /// As `Open`, and, where that succeeds, as a demand `Pull` of the beginning of the file: its reply and frames
    /// follow on the same stream. Opening and reading take one round trip like this, not two.
    OpenAndPull {
        /// A regular file.
        node: Node,
        /// What for.
        access: Access,
        /// One past the last byte of the pull; 1 to [`super::TRANSFER_BYTES_MAX`].
        end: u64,
        /// Frames may be compressed.
        compress: bool,
    },
    /// `Reply::Done` when the lock is had; `EAGAIN` where somebody else's is in the way and it is not to wait for it,
    /// `EDEADLK`, `ENOLCK`. While it waits, the end of the request's half of the stream is the wish not to wait any
    /// longer: the answer is then `EINTR`, unless it has been had already. May be repeated, as what is held may be
    /// asked for again.
    Lock {
        /// A handle of the file.
        handle: HandleId,
        /// For whom.
        key: LockKey,
        /// The process that asks, to be told to others.
        pid: u32,
        /// What.
        run: LockRun,
        /// It is willing to wait.
        wait: bool,
    },
    /// `Reply::Done`: nothing of the range is held any more. `ENOLCK` where that would make too many parts.
    Unlock {
        /// The file, which need not be open any more.
        id: FileId,
        /// Whose locks.
        key: LockKey,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// `Reply::Lock`: one that is in the way.
    TestLock {
        /// A handle of the file.
        handle: HandleId,
        /// Of whom.
        key: LockKey,
        /// Of what.
        run: LockRun,
    },
    /// `Reply::Done` if an owner still holds these locks, or has them again because the authority has begun anew;
    /// `EIO` if they are lost. For a replica whose session was not resumed.
    ReclaimLocks {
        /// A handle of the file.
        handle: HandleId,
        /// Whose locks.
        key: LockKey,
        /// The process that asked for them.
        pid: u32,
        /// All that it holds of the file.
        runs: Vec<LockRun>,
    },
    /// `Reply::Done`: all that this replica held has been reclaimed. Until all replicas of an earlier run of the
    /// authority have said so, or their leases have run out, nobody gets a lock.
    LocksReclaimed,
}

/// A request that changes something.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ChangeRequest {
    /// `Reply::Attr`.
    SetAttr {
        /// The node.
        node: Node,
        /// An open handle of it, if there is one.
        handle: Option<HandleId>,
        /// What to change.
        set: SetAttr,
        /// On whose behalf.
        by: Caller,
    },
    /// `Reply::Attr` of the new node. `EEXIST` if the name is taken.
    Make {
        /// The directory.
        dir: Node,
        /// The name.
        name: Name,
        /// What.
        make: Make,
        /// Permission bits, the caller's umask already applied.
        mode: u16,
        /// On whose behalf.
        by: Caller,
    },
    /// `Reply::Opened`, for writing: makes a regular file and opens it. `EEXIST` if the name is
    /// taken and `exclusive`, or not a regular file; otherwise an existing file is opened as it is.
    Create {
        /// The directory.
        dir: Node,
        /// The name.
        name: Name,
        /// Permission bits, the caller's umask already applied.
        mode: u16,
        /// `O_EXCL`.
        exclusive: bool,
        /// On whose behalf.
        by: Caller,
    },
    /// `Reply::Attr` of the node.
    Link {
        /// The node.
        node: Node,
        /// The directory of the new name.
        dir: Node,
        /// The new name.
        name: Name,
    },
    /// `Reply::Done`: `unlink`, or `rmdir` if `directory`.
    Remove {
        /// The directory.
        dir: Node,
        /// The name.
        name: Name,
        /// It is to be an (empty) directory.
        directory: bool,
    },
    /// `Reply::Done`.
    Rename {
        /// The directory it is in.
        from_dir: Node,
        /// Its name there.
        from: Name,
        /// The directory it goes to.
        to_dir: Node,
        /// Its name there.
        to: Name,
        /// What if the target exists.
        mode: RenameMode,
    },
    /// `Reply::Done`.
    SetXattr {
        /// The node.
        node: Node,
        /// Name of the attribute: 1 to 255 bytes, no NUL.
        name: Vec<u8>,
        /// Value: at most [`super::XATTR_BYTES_MAX`] bytes.
        value: Vec<u8>,
        /// What if it exists, or not.
        mode: XattrMode,
    },
    /// `Reply::Done`.
    RemoveXattr {
        /// The node.
        node: Node,
        /// Name of the attribute: 1 to 255 bytes, no NUL.
        name: Vec<u8>,
    },
    /// `Reply::Attr` of the region.
    Allocate {
        /// A handle of the region, open for writing.
        handle: HandleId,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// How.
        mode: Allocate,
    },
    /// `Reply::Attr` of the region. Frames with the bytes of the extents, in order, follow the request.
    /// A region that is shorter is extended. Answered when every other replica has dropped its copy
    /// of these bytes, or its lease has run out.
    Push {
        /// A handle of the region, open for writing.
        handle: HandleId,
        /// The epoch in which the bytes were stored; another one is refused with `ESTALE`.
        epoch: Epoch,
        /// Ascending, not empty, not touching; at most [`super::PUSH_EXTENTS_MAX`] of them and
        /// [`super::TRANSFER_BYTES_MAX`] bytes in all.
        extents: Vec<Extent>,
    },
    /// `Reply::Attr`: everything pushed to the region before is durable (`fsync(2)`).
    Sync {
        /// A handle of the region.
        handle: HandleId,
        /// `fdatasync(2)` will do.
        data_only: bool,
    },
    /// `Reply::Done`: changes to the directory's entries are durable.
    SyncDir {
        /// The directory.
        dir: Node,
    },
}

/// A run of bytes of a region, in a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl From<Extent> for ByteRange {
    fn from(extent: Extent) -> ByteRange {
        ByteRange::new(extent.start, extent.end)
    }
}

impl From<ByteRange> for Extent {
    fn from(range: ByteRange) -> Extent {
        Extent {
            start: range.start,
            end: range.end,
        }
    }
}

/// A run of pages of a region ([`crate::units::PAGE_BYTES`] each). It may lie beyond the end, or be no run at all: a
/// peer says so, and it is only ever taken for a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Pages {
    /// The first of them.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl From<Pages> for PageRange {
    fn from(pages: Pages) -> PageRange {
        PageRange::new(pages.first, pages.first.saturating_add(pages.count))
    }
}

impl From<PageRange> for Pages {
    fn from(range: PageRange) -> Pages {
        Pages {
            first: range.start,
            count: range.len(),
        }
    }
}

/// What the authority remembers of the order in which a region is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Learning {
    /// Nothing, and it does not want to: the region is small, or it was told not to.
    Off,
    /// Nothing yet.
    New,
    /// It can be asked for: [`ReadRequest::Order`].
    Known,
}

/// A reply. `at` is the authority's clock of changes, read before the answer was made: a copy with
/// this stamp has taken in every change up to it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reply {
    /// See above.
    pub at: Tick,
    /// The answer, or an errno (Linux numbers).
    pub result: Result<Answer, i32>,
}

/// What a request is answered with; which of these is told by the request.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// Nothing to say.
    Done,
    /// Attributes after the request.
    Attr(Attr),
    /// A file is open.
    Opened {
        /// Its handle.
        handle: HandleId,
        /// Its attributes.
        attr: Attr,
        /// Its epoch.
        epoch: Epoch,
        /// Whether the order in which it is touched is known.
        learning: Learning,
        /// Names of its extended attributes, each followed by NUL, if it is open for writing and they have at most
        /// [`super::ENTRY_XATTRS_BYTES_MAX`].
        xattrs: Option<Vec<u8>>,
    },
    /// Some bytes.
    Bytes(Vec<u8>),
    /// Some entries of a directory; none at the end.
    Entries(Vec<DirEntry>),
    /// An offset in a file.
    Offset(u64),
    /// Of the file system below the store.
    StatFs(StatFs),
    /// Bytes of a region follow in frames, from the start of the range asked for to its end or to
    /// `size`, whichever comes first.
    Pulled {
        /// Size of the region.
        size: u64,
        /// From the end of the range asked for up to here there are only zeroes, as far as the
        /// authority knows; at least the end of the range.
        zero_until: u64,
    },
    /// First touched first; at most [`ORDER_RUNS_MAX`].
    Order(Vec<Pages>),
    /// Hashes of units of a region.
    Hashed {
        /// Size of the region: what lies past it of an extent is left out.
        size: u64,
        /// One of each unit, in order.
        hashes: Vec<Hash>,
    },
    /// A lock that is in the way, if there is one.
    Lock(Option<HeldLock>),
}

/// Somebody's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeldLock {
    /// What is held.
    pub run: LockRun,
    /// The process that holds it, as its machine counts.
    pub pid: u32,
}

/// The BLAKE3 of some bytes. Nothing else tells whether two pages are the same, also where somebody has made them
/// to be mixed up: so it is a cryptographic one, and all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

// Two numbers of at most nine bytes each, and room to spare.
const _: () = assert!(ORDER_RUNS_MAX * 20 < super::MESSAGE_BYTES_MAX);
