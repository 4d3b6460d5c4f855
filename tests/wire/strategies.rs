//! Strategies for any message that a peer may lawfully send.

use super::samples;
use memfs::region::{ClientId, Epoch, LockKey, LockRun, Tick};
use memfs::wire::*;
use proptest::collection::vec;
use proptest::prelude::*;

type Any<T> = BoxedStrategy<T>;

/// Any value of an enum whose samples hold every variant that matters.
fn one_of<T: Clone + std::fmt::Debug + 'static>(samples: Vec<T>) -> Any<T> {
    proptest::sample::select(samples).boxed()
}

/// Numbers of every length that the encoding knows.
fn number() -> Any<u64> {
    let edges = [0, 1, 250, 251, 65_535, 65_536, u64::MAX];
    prop_oneof![any::<u64>(), 0..1000u64, one_of(edges.to_vec())].boxed()
}

pub fn name() -> Any<Name> {
    vec(any::<u8>(), 1..=255)
        .prop_filter_map("not a name", Name::new)
        .boxed()
}

pub fn path() -> Any<RelPath> {
    let join = |path: RelPath, name: &Name| path.join(name).unwrap_or(path);
    vec(name(), 0..20)
        .prop_map(move |names| names.iter().fold(RelPath::root(), join))
        .boxed()
}

fn bytes(max: usize) -> Any<Vec<u8>> {
    vec(any::<u8>(), 0..=max).boxed()
}

fn id() -> Any<FileId> {
    (number(), number(), number())
        .prop_map(|(dev, ino, born)| FileId { dev, ino, born })
        .boxed()
}

fn node() -> Any<Node> {
    (id(), path())
        .prop_map(|(id, path)| Node { id, path })
        .boxed()
}

fn time() -> Any<Time> {
    (any::<i64>(), 0..1_000_000_000u32)
        .prop_map(|(secs, nanos)| Time { secs, nanos })
        .boxed()
}

fn caller() -> Any<Caller> {
    any::<(u32, u32)>()
        .prop_map(|(uid, gid)| Caller { uid, gid })
        .boxed()
}

pub fn attr() -> Any<Attr> {
    let numbers = (number(), number(), number(), any::<u32>());
    let who = (0..=0o7777u16, any::<u32>(), caller());
    let kind = one_of(samples::kinds());
    (id(), kind, numbers, who, (time(), time(), time()))
        .prop_map(
            |(id, kind, (rdev, size, blocks, blksize), (mode, nlink, by), times)| Attr {
                id,
                kind,
                mode,
                nlink,
                uid: by.uid,
                gid: by.gid,
                rdev,
                size,
                blocks,
                blksize,
                atime: times.0,
                mtime: times.1,
                ctime: times.2,
            },
        )
        .boxed()
}

pub fn hello() -> Any<Hello> {
    (any::<(u16, u16, [u8; 16], bool, bool)>(), path())
        .prop_map(
            |((oldest, newest, client, read_only, listing), subtree)| Hello {
                oldest,
                newest,
                client: ClientId(client),
                subtree,
                read_only,
                listing,
            },
        )
        .boxed()
}

pub fn hello_reply() -> Any<HelloReply> {
    let flags = any::<(bool, bool, bool, bool, bool, bool, bool, bool)>();
    let listing = (number(), vec(entry(), 0..20));
    let listing = listing.prop_map(|(at, entries)| Listing {
        at: Tick(at),
        entries,
    });
    let root = (attr(), proptest::option::of(listing));
    let welcome = (any::<(u16, u64, u32)>(), flags, caller(), root);
    let welcome = welcome.prop_map(|((version, boot, lease_ms), flag, server, root)| Welcome {
        version,
        boot,
        resumed: flag.0,
        lease_ms,
        read_only: flag.1,
        server,
        root: root.0,
        listing: root.1,
        capabilities: Capabilities {
            xattrs: flag.2,
            hard_links: flag.3,
            symlinks: flag.4,
            special_files: flag.5,
            owners: flag.6,
            durable: flag.7,
        },
    });
    let refusal = prop_oneof![
        one_of(samples::refusals()),
        any::<i32>().prop_map(Refusal::Subtree)
    ];
    prop_oneof![
        welcome.prop_map(HelloReply::Welcome),
        refusal.prop_map(HelloReply::Refused)
    ]
    .boxed()
}

pub fn replica_event() -> Any<ReplicaEvent> {
    let forgotten = vec((id(), number().prop_map(Tick)), 0..300);
    prop_oneof![
        number().prop_map(|sent| ReplicaEvent::Renew { sent }),
        number().prop_map(|change| ReplicaEvent::Taken { change }),
        forgotten.prop_map(ReplicaEvent::Forget),
        Just(ReplicaEvent::Goodbye),
    ]
    .boxed()
}

pub fn authority_event() -> Any<AuthorityEvent> {
    let stale = prop_oneof![
        Just(Stale::Attributes),
        (number(), number()).prop_map(|(start, end)| Stale::Bytes { start, end })
    ];
    let invalidate =
        (number(), id(), number().prop_map(Tick), stale).prop_map(|(change, id, at, what)| {
            AuthorityEvent::Invalidate {
                change,
                id,
                at,
                what,
            }
        });
    prop_oneof![
        number().prop_map(|sent| AuthorityEvent::Renewed { sent }),
        invalidate
    ]
    .boxed()
}

fn handle() -> Any<HandleId> {
    (number(), id())
        .prop_map(|(number, file)| HandleId { number, file })
        .boxed()
}

fn runs() -> Any<Vec<Pages>> {
    let run = (number(), number()).prop_map(|(first, count)| Pages { first, count });
    vec(run, 0..300).boxed()
}

fn lock_key() -> Any<LockKey> {
    (one_of(samples::lock_spaces()), number())
        .prop_map(|(space, owner)| LockKey { space, owner })
        .boxed()
}

fn lock_run() -> Any<LockRun> {
    (number(), number(), one_of(samples::lock_modes()))
        .prop_map(|(start, end, mode)| LockRun { start, end, mode })
        .boxed()
}

fn lock_request() -> Any<ReadRequest> {
    let lock = (handle(), lock_key(), lock_run(), any::<(u32, bool)>());
    prop_oneof![
        lock.prop_map(|(handle, key, run, (pid, wait))| ReadRequest::Lock {
            handle,
            key,
            pid,
            run,
            wait,
        }),
        (id(), lock_key(), number(), number()).prop_map(|(id, key, start, end)| {
            ReadRequest::Unlock {
                id,
                key,
                start,
                end,
            }
        }),
        (handle(), lock_key(), lock_run()).prop_map(|(handle, key, run)| ReadRequest::TestLock {
            handle,
            key,
            run
        }),
        (handle(), lock_key(), any::<u32>(), vec(lock_run(), 0..300)).prop_map(
            |(handle, key, pid, runs)| ReadRequest::ReclaimLocks {
                handle,
                key,
                pid,
                runs,
            }
        ),
    ]
    .boxed()
}

fn read_request() -> Any<ReadRequest> {
    let pull = (handle(), number(), number(), any::<(bool, bool)>());
    let extent = (number(), number()).prop_map(|(start, end)| Extent { start, end });
    let hashes = (handle(), vec(extent, 0..=HASH_EXTENTS_MAX), any::<u32>());
    prop_oneof![
        one_of(samples::read_requests()),
        lock_request(),
        (node(), name()).prop_map(|(dir, name)| ReadRequest::Lookup { dir, name }),
        (node(), proptest::option::of(handle()))
            .prop_map(|(node, handle)| ReadRequest::GetAttr { node, handle }),
        (node(), number(), any::<bool>()).prop_map(|(dir, cursor, xattrs)| ReadRequest::ReadDir {
            dir,
            cursor,
            xattrs
        }),
        (node(), one_of(samples::accesses()))
            .prop_map(|(node, access)| ReadRequest::Open { node, access }),
        (node(), one_of(samples::accesses()), number(), any::<bool>()).prop_map(
            |(node, access, end, compress)| ReadRequest::OpenAndPull {
                node,
                access,
                end,
                compress,
            }
        ),
        pull.prop_map(|(handle, start, end, flag)| ReadRequest::Pull {
            handle,
            start,
            end,
            demand: flag.0,
            compress: flag.1,
        }),
        (handle(), number(), any::<bool>()).prop_map(|(handle, offset, data)| ReadRequest::Seek {
            handle,
            offset,
            data,
        }),
        (node(), bytes(255)).prop_map(|(node, name)| ReadRequest::GetXattr { node, name }),
        (handle(), runs()).prop_map(|(handle, runs)| ReadRequest::Touched { handle, runs }),
        hashes.prop_map(|(handle, extents, unit)| ReadRequest::Hashes {
            handle,
            extents,
            unit,
        }),
    ]
    .boxed()
}

fn set_attr() -> Any<SetAttr> {
    let set_time = prop_oneof![Just(SetTime::Now), time().prop_map(SetTime::At)];
    let times = (
        proptest::option::of(set_time.clone()),
        proptest::option::of(set_time),
    );
    (
        any::<(Option<u16>, Option<u32>, Option<u32>, Option<u64>)>(),
        times,
    )
        .prop_map(|((mode, uid, gid, size), (atime, mtime))| SetAttr {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        })
        .boxed()
}

fn make() -> Any<Make> {
    prop_oneof![
        one_of(samples::makes()),
        bytes(4095).prop_map(Make::Symlink),
        number().prop_map(Make::CharDevice),
    ]
    .boxed()
}

fn push() -> Any<ChangeRequest> {
    let extent = (number(), number()).prop_map(|(start, end)| Extent { start, end });
    (handle(), number(), vec(extent, 0..=PUSH_EXTENTS_MAX))
        .prop_map(|(handle, epoch, extents)| ChangeRequest::Push {
            handle,
            epoch: Epoch(epoch),
            extents,
        })
        .boxed()
}

fn change_request() -> Any<ChangeRequest> {
    let set = (node(), proptest::option::of(handle()), set_attr(), caller());
    let made = (node(), name(), make(), any::<u16>(), caller());
    let renamed = (node(), name(), node(), name());
    let xattr = (node(), bytes(255), bytes(4096));
    prop_oneof![
        one_of(samples::change_requests()),
        push(),
        set.prop_map(|(node, handle, set, by)| ChangeRequest::SetAttr {
            node,
            handle,
            set,
            by,
        }),
        made.prop_map(|(dir, name, make, mode, by)| ChangeRequest::Make {
            dir,
            name,
            make,
            mode,
            by,
        }),
        (renamed, one_of(samples::rename_modes())).prop_map(
            |((from_dir, from, to_dir, to), mode)| ChangeRequest::Rename {
                from_dir,
                from,
                to_dir,
                to,
                mode,
            }
        ),
        (xattr, one_of(samples::xattr_modes())).prop_map(|((node, name, value), mode)| {
            ChangeRequest::SetXattr {
                node,
                name,
                value,
                mode,
            }
        }),
        (handle(), number(), number(), one_of(samples::allocates())).prop_map(
            |(handle, start, end, mode)| ChangeRequest::Allocate {
                handle,
                start,
                end,
                mode,
            }
        ),
    ]
    .boxed()
}

pub fn request() -> Any<Request> {
    let sequence =
        (number(), number()).prop_map(|(number, answered)| Sequence { number, answered });
    prop_oneof![
        read_request().prop_map(Request::Read),
        (sequence, change_request()).prop_map(|(s, change)| Request::Change(s, change)),
    ]
    .boxed()
}

fn entry() -> Any<DirEntry> {
    (
        name(),
        attr(),
        1..=u64::MAX,
        proptest::option::of(bytes(ENTRY_XATTRS_BYTES_MAX)),
    )
        .prop_map(|(name, attr, cursor, xattrs)| DirEntry {
            name,
            attr,
            cursor,
            xattrs,
        })
        .boxed()
}

fn answer() -> Any<Answer> {
    let xattrs = proptest::option::of(bytes(256));
    let opened = (
        handle(),
        attr(),
        number(),
        one_of(samples::learnings()),
        xattrs,
    );
    prop_oneof![
        one_of(samples::answers()),
        attr().prop_map(Answer::Attr),
        opened.prop_map(|(handle, attr, epoch, learning, xattrs)| Answer::Opened {
            handle,
            attr,
            epoch: Epoch(epoch),
            learning,
            xattrs,
        }),
        runs().prop_map(Answer::Order),
        (lock_run(), any::<u32>()).prop_map(|(run, pid)| Answer::Lock(Some(HeldLock { run, pid }))),
        bytes(4096).prop_map(Answer::Bytes),
        vec(entry(), 0..50).prop_map(Answer::Entries),
        (number(), number()).prop_map(|(size, zero_until)| Answer::Pulled { size, zero_until }),
        (number(), vec(any::<[u8; 32]>(), 0..1500)).prop_map(|(size, hashes)| Answer::Hashed {
            size,
            hashes: hashes.into_iter().map(Hash).collect(),
        }),
    ]
    .boxed()
}

pub fn reply() -> Any<Reply> {
    let result = prop_oneof![answer().prop_map(Ok), any::<i32>().prop_map(Err)];
    (number().prop_map(Tick), result)
        .prop_map(|(at, result)| Reply { at, result })
        .boxed()
}

/// Bytes such as a hostile peer would send: what the encoding gives a meaning (the first numbers, the
/// marks of longer ones) is frequent.
pub fn hostile(max: usize) -> Any<Vec<u8>> {
    let byte = |random: u64| match random >> 61 {
        0..4 => (random >> 32) as u8 % 16,
        4 => 250 + (random >> 32) as u8 % 6,
        _ => (random >> 32) as u8,
    };
    (any::<u64>(), 0..=max)
        .prop_map(move |(seed, len)| samples::noise(seed).map(byte).take(len).collect())
        .boxed()
}
