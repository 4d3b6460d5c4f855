//! One sample of every message and of every variant of what messages hold.
//!
//! [`variants!`] matches each enum exhaustively: a new variant does not compile until it has a name
//! here, and `golden` fails until it has a sample.

use memfs::region::{ClientId, Epoch, LockKey, LockMode, LockRun, LockSpace, Tick};
use memfs::wire::frame::{self, Header};
use memfs::wire::*;

/// Gives the name of a value's variant, and the names of all.
macro_rules! variants {
    ($($type:ident { $($variant:ident),* })*) => {
        /// A message, or a part of one, that has variants.
        pub trait Variants {
            /// `Type::Variant` of each.
            const ALL: &'static [&'static str];
            /// `Type::Variant` of this one.
            fn variant(&self) -> &'static str;
        }
        $(impl Variants for $type {
            const ALL: &'static [&'static str] =
                &[$(concat!(stringify!($type), "::", stringify!($variant))),*];
            fn variant(&self) -> &'static str {
                match self {
                    $($type::$variant { .. } =>
                        concat!(stringify!($type), "::", stringify!($variant)),)*
                }
            }
        })*
    };
}

variants! {
    HelloReply { Welcome, Refused }
    Refusal { Version, Subtree, Client, Full }
    ReplicaEvent { Renew, Taken, Forget, Goodbye }
    AuthorityEvent { Renewed, Invalidate }
    Stale { Attributes, Bytes }
    Request { Read, Change }
    ReadRequest {
        Lookup, GetAttr, ReadLink, ReadDir, Open, Close, Pull, Seek, GetXattr, ListXattr, StatFs,
        Only, Order, Touched, Hashes, OpenAndPull, Lock, Unlock, TestLock, ReclaimLocks, LocksReclaimed
    }
    ChangeRequest {
        SetAttr, Make, Create, Link, Remove, Rename, SetXattr, RemoveXattr, Allocate, Push, Sync,
        SyncDir
    }
    Answer { Done, Attr, Opened, Bytes, Entries, Offset, StatFs, Pulled, Order, Hashed, Lock }
    Learning { Off, New, Known }
    LockMode { Shared, Exclusive }
    LockSpace { Flock, Fcntl }
    Kind { File, Directory, Symlink, Fifo, Socket, CharDevice, BlockDevice }
    Make { File, Directory, Symlink, Fifo, Socket, CharDevice, BlockDevice }
    SetTime { Now, At }
    RenameMode { Replace, NoReplace, Exchange }
    Access { Read, Write }
    Allocate { Extend, KeepSize, PunchHole, ZeroExtend, ZeroKeepSize }
    XattrMode { Set, Create, Replace }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

const ID: FileId = FileId {
    dev: 0x801,
    ino: 131_074,
    born: 1_763_757_000_123_456_789,
};

const TIME: Time = Time {
    secs: 1_763_757_000,
    nanos: 123_456_789,
};

const BY: Caller = Caller {
    uid: 1000,
    gid: 100,
};

const HANDLE: HandleId = HandleId {
    number: 7,
    file: ID,
};

pub const ATTR: Attr = Attr {
    id: ID,
    kind: Kind::File,
    mode: 0o644,
    nlink: 1,
    uid: 1000,
    gid: 100,
    rdev: 0,
    size: 5_000_000_000,
    blocks: 9_765_632,
    blksize: 4096,
    atime: TIME,
    mtime: Time {
        secs: -1,
        nanos: 999_999_999,
    },
    ctime: TIME,
};

fn node() -> Node {
    Node {
        id: ID,
        path: path("data/weights.bin"),
    }
}

fn entry() -> DirEntry {
    DirEntry {
        name: name("entry"),
        attr: ATTR,
        cursor: 1,
        xattrs: Some(b"user.origin\0".to_vec()),
    }
}

fn dir() -> Node {
    Node {
        id: ID,
        path: path("data"),
    }
}

pub fn hello() -> Hello {
    Hello {
        oldest: 1,
        newest: 1,
        client: ClientId(*b"0123456789abcdef"),
        subtree: path("projects/one"),
        read_only: true,
        listing: false,
    }
}

pub fn hello_replies() -> Vec<HelloReply> {
    let welcome = Welcome {
        version: 1,
        boot: 0x0123_4567_89ab_cdef,
        resumed: false,
        lease_ms: 10_000,
        read_only: true,
        server: BY,
        root: ATTR,
        capabilities: Capabilities {
            xattrs: true,
            hard_links: false,
            symlinks: true,
            special_files: false,
            owners: true,
            durable: false,
        },
        listing: Some(Listing {
            at: Tick(7),
            entries: vec![entry()],
        }),
    };
    let refused = refusals().into_iter().map(HelloReply::Refused);
    [HelloReply::Welcome(welcome)]
        .into_iter()
        .chain(refused)
        .collect()
}

pub fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::Version {
            oldest: 2,
            newest: 300,
        },
        Refusal::Subtree(2),
        Refusal::Client,
        Refusal::Full,
    ]
}

pub fn replica_events() -> Vec<ReplicaEvent> {
    vec![
        ReplicaEvent::Renew { sent: 250 },
        ReplicaEvent::Taken { change: 251 },
        ReplicaEvent::Forget(vec![(ID, Tick(65_536))]),
        ReplicaEvent::Goodbye,
    ]
}

pub fn stales() -> Vec<Stale> {
    vec![
        Stale::Attributes,
        Stale::Bytes {
            start: 4096,
            end: u64::MAX,
        },
    ]
}

pub fn authority_events() -> Vec<AuthorityEvent> {
    let invalidate = |what| AuthorityEvent::Invalidate {
        change: 9,
        id: ID,
        at: Tick(70_000),
        what,
    };
    let invalidates = stales().into_iter().map(invalidate);
    [AuthorityEvent::Renewed { sent: 250 }]
        .into_iter()
        .chain(invalidates)
        .collect()
}

pub fn read_requests() -> Vec<ReadRequest> {
    vec![
        ReadRequest::Lookup {
            dir: dir(),
            name: name("weights.bin"),
        },
        ReadRequest::GetAttr {
            node: node(),
            handle: Some(HANDLE),
        },
        ReadRequest::ReadLink { node: node() },
        ReadRequest::ReadDir {
            dir: dir(),
            cursor: 3,
            xattrs: true,
        },
        ReadRequest::Open {
            node: node(),
            access: Access::Read,
        },
        ReadRequest::OpenAndPull {
            node: node(),
            access: Access::Write,
            end: 1 << 17,
            compress: true,
        },
        ReadRequest::Close { handle: HANDLE },
        ReadRequest::Pull {
            handle: HANDLE,
            start: 1 << 40,
            end: (1 << 40) + TRANSFER_BYTES_MAX,
            demand: true,
            compress: false,
        },
        ReadRequest::Seek {
            handle: HANDLE,
            offset: 4096,
            data: true,
        },
        ReadRequest::GetXattr {
            node: node(),
            name: b"user.origin".to_vec(),
        },
        ReadRequest::ListXattr { node: node() },
        ReadRequest::StatFs,
        ReadRequest::Only {
            node: node(),
            after: Tick(70_000),
            by: ClientId(*b"0123456789abcdef"),
        },
        ReadRequest::Order { handle: HANDLE },
        ReadRequest::Touched {
            handle: HANDLE,
            runs: runs(),
        },
        ReadRequest::Hashes {
            handle: HANDLE,
            extents: vec![
                Extent {
                    start: 0,
                    end: 4096,
                },
                Extent {
                    start: 1 << 30,
                    end: (1 << 30) + 5000,
                },
            ],
            unit: HASH_UNIT_BYTES_MAX,
        },
    ]
    .into_iter()
    .chain(lock_requests())
    .collect()
}

fn lock_requests() -> Vec<ReadRequest> {
    let key = |space| LockKey { space, owner: 251 };
    let run = |mode| LockRun {
        start: 1 << 30,
        end: u64::MAX,
        mode,
    };
    let lock = |(mode, space)| ReadRequest::Lock {
        handle: HANDLE,
        key: key(space),
        pid: 4711,
        run: run(mode),
        wait: true,
    };
    let kinds = [
        (LockMode::Shared, LockSpace::Flock),
        (LockMode::Exclusive, LockSpace::Fcntl),
    ];
    let key = key(LockSpace::Fcntl);
    let others = [
        ReadRequest::Unlock {
            id: ID,
            key,
            start: 0,
            end: 1,
        },
        ReadRequest::TestLock {
            handle: HANDLE,
            key,
            run: run(LockMode::Shared),
        },
        ReadRequest::ReclaimLocks {
            handle: HANDLE,
            key,
            pid: 4711,
            runs: vec![run(LockMode::Exclusive)],
        },
        ReadRequest::LocksReclaimed,
    ];
    kinds.map(lock).into_iter().chain(others).collect()
}

pub fn change_requests() -> Vec<ChangeRequest> {
    let set = SetAttr {
        mode: Some(0o600),
        uid: None,
        gid: Some(100),
        size: Some(0),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(TIME)),
    };
    vec![
        ChangeRequest::SetAttr {
            node: node(),
            handle: None,
            set,
            by: BY,
        },
        ChangeRequest::Make {
            dir: dir(),
            name: name("link"),
            make: Make::Symlink(b"../elsewhere".to_vec()),
            mode: 0o777,
            by: BY,
        },
        ChangeRequest::Create {
            dir: dir(),
            name: name("new"),
            mode: 0o640,
            exclusive: true,
            by: BY,
        },
        ChangeRequest::Link {
            node: node(),
            dir: dir(),
            name: name("other"),
        },
        ChangeRequest::Remove {
            dir: dir(),
            name: name("old"),
            directory: false,
        },
        ChangeRequest::Rename {
            from_dir: dir(),
            from: name("a"),
            to_dir: node(),
            to: name("b"),
            mode: RenameMode::Replace,
        },
        ChangeRequest::SetXattr {
            node: node(),
            name: b"user.origin".to_vec(),
            value: vec![0, 255],
            mode: XattrMode::Create,
        },
        ChangeRequest::RemoveXattr {
            node: node(),
            name: b"user.origin".to_vec(),
        },
        ChangeRequest::Allocate {
            handle: HANDLE,
            start: 0,
            end: 1 << 20,
            mode: Allocate::PunchHole,
        },
        ChangeRequest::Push {
            handle: HANDLE,
            epoch: Epoch(1),
            extents: vec![
                Extent {
                    start: 0,
                    end: 4096,
                },
                Extent {
                    start: 1 << 30,
                    end: (1 << 30) + 5,
                },
            ],
        },
        ChangeRequest::Sync {
            handle: HANDLE,
            data_only: true,
        },
        ChangeRequest::SyncDir { dir: dir() },
    ]
}

pub fn requests() -> Vec<Request> {
    let sequence = Sequence {
        number: 12,
        answered: 10,
    };
    let reads = read_requests().into_iter().map(Request::Read);
    let changes = change_requests().into_iter();
    reads
        .chain(changes.map(|change| Request::Change(sequence, change)))
        .collect()
}

pub fn answers() -> Vec<Answer> {
    vec![
        Answer::Done,
        Answer::Attr(ATTR),
        Answer::Opened {
            handle: HANDLE,
            attr: ATTR,
            epoch: Epoch(1),
            learning: Learning::Known,
            xattrs: Some(b"user.kind\0".to_vec()),
        },
        Answer::Bytes(b"target".to_vec()),
        Answer::Entries(vec![entry()]),
        Answer::Offset(8192),
        Answer::StatFs(StatFs {
            block_bytes: 4096,
            blocks: 1 << 30,
            blocks_free: 1 << 29,
            blocks_available: 1 << 28,
            files: 1 << 20,
            files_free: 1 << 19,
            name_bytes_max: 255,
        }),
        Answer::Pulled {
            size: 5_000_000_000,
            zero_until: 1 << 20,
        },
        Answer::Order(runs()),
        Answer::Hashed {
            size: 5_000_000_000,
            hashes: vec![Hash::of(b""), Hash::of(b"abc")],
        },
        Answer::Lock(None),
        Answer::Lock(Some(HeldLock {
            run: LockRun {
                start: 0,
                end: 1 << 20,
                mode: LockMode::Shared,
            },
            pid: 4711,
        })),
    ]
}

pub fn lock_modes() -> Vec<LockMode> {
    vec![LockMode::Shared, LockMode::Exclusive]
}

pub fn lock_spaces() -> Vec<LockSpace> {
    vec![LockSpace::Flock, LockSpace::Fcntl]
}

fn runs() -> Vec<Pages> {
    let run = |(first, count)| Pages { first, count };
    [(7, 1), (1 << 28, 300)].map(run).into()
}

pub fn learnings() -> Vec<Learning> {
    vec![Learning::Off, Learning::New, Learning::Known]
}

pub fn replies() -> Vec<Reply> {
    let results = answers().into_iter().map(Ok).chain([Err(28)]);
    results
        .map(|result| Reply {
            at: Tick(300),
            result,
        })
        .collect()
}

pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice,
        Kind::BlockDevice,
    ]
}

pub fn makes() -> Vec<Make> {
    vec![
        Make::File,
        Make::Directory,
        Make::Symlink(b"target".to_vec()),
        Make::Fifo,
        Make::Socket,
        Make::CharDevice(0x0105),
        Make::BlockDevice(0x0801),
    ]
}

pub fn set_times() -> Vec<SetTime> {
    vec![SetTime::Now, SetTime::At(TIME)]
}

pub fn rename_modes() -> Vec<RenameMode> {
    vec![
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
    ]
}

pub fn accesses() -> Vec<Access> {
    vec![Access::Read, Access::Write]
}

pub fn allocates() -> Vec<Allocate> {
    vec![
        Allocate::Extend,
        Allocate::KeepSize,
        Allocate::PunchHole,
        Allocate::ZeroExtend,
        Allocate::ZeroKeepSize,
    ]
}

pub fn xattr_modes() -> Vec<XattrMode> {
    vec![XattrMode::Set, XattrMode::Create, XattrMode::Replace]
}

pub fn frame_headers() -> Vec<Header> {
    let header = |kind, len, wire| Header { kind, len, wire };
    vec![
        header(frame::Kind::Data, 4096, 4096),
        header(frame::Kind::Zero, TRANSFER_BYTES_MAX as u32, 0),
        header(frame::Kind::Lz4, frame::FRAME_BYTES_MAX, 1000),
    ]
}

/// Endless numbers that look random in their upper bits (Knuth's MMIX generator).
pub fn noise(mut state: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state
    })
}
