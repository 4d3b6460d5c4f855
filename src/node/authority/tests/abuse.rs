//! Replicas that break the protocol, ask for the impossible, or hold on to what they are given: each is dealt
//! with, and the others do not notice.

use super::client::*;
use crate::node::authority::outbox::{End, Outbox};
use crate::node::authority::shares::{SESSIONS_PER_KEY_MAX, room};
use crate::node::authority::{CLIENTS_MAX, CLOSE_PROTOCOL, HANDLES_MAX};
use crate::region::Tick;
use crate::store::{Errno, Store};
use crate::transport::Identity;
use crate::transport::stream::{self, StreamError};
use crate::wire::frame::{self, FRAME_BYTES_MAX};
use crate::wire::*;
use bytes::Bytes;
use quinn::{Connection, ConnectionError};

/// That the connection was closed for breaking the protocol. What is under way may leave no room for
/// saying why: then the authority soon does not know the connection any more.
async fn closed(connection: &Connection) {
    match connection.closed().await {
        ConnectionError::Reset => {}
        ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code, CLOSE_PROTOCOL),
        other => panic!("{other}"),
    }
}

/// That this client is served.
async fn served(client: &Client) {
    let (handle, _) = match client.look_up(&client.root(), "witness").await {
        Ok(attr) => client.open(&node(&attr, "witness"), Access::Write).await,
        Err(_) => {
            let (handle, file) = client.create("witness").await;
            let request = ReadRequest::GetAttr {
                node: file,
                handle: Some(handle),
            };
            (handle, client.attr(request).await)
        }
    };
    client.push(handle, 0, b"alive").await.unwrap();
    assert_eq!(client.bytes(handle, 0, 5).await, b"alive");
    client.read(ReadRequest::Close { handle }).await.unwrap();
}

fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_hello_is_not_let_in() {
    let server = Server::in_memory();
    let witness = server.client(9).await;
    let huge = u32::MAX.to_le_bytes().to_vec();
    let mut wrong = 20u32.to_le_bytes().to_vec();
    wrong.extend(noise(1).take(20));
    let event = codec::encode(&ReplicaEvent::Goodbye).unwrap();
    for bytes in [huge, wrong, event] {
        let connection = server.connect(&server.key).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        closed(&connection).await;
        served(&witness).await;
    }
    let silent = server.connect(&server.key).await;
    let (mut send, _receive) = silent.open_bi().await.unwrap();
    send.finish().unwrap();
    closed(&silent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_ends_its_connection() {
    let server = Server::in_memory();
    let witness = server.client(9).await;
    for length in [u32::MAX, MESSAGE_BYTES_MAX as u32 + 1, 100] {
        let client = server.client(1).await;
        let (mut send, _receive) = client.connection.open_bi().await.unwrap();
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(noise(u64::from(length)).take(100));
        send.write_all(&bytes).await.unwrap();
        closed(&client.connection).await;
    }
    // A name that leaves its directory is no message either.
    let client = server.client(1).await;
    let request = Request::Read(ReadRequest::Lookup {
        dir: client.root(),
        name: name("XX"),
    });
    let mut bytes = codec::encode(&request).unwrap();
    let at = bytes.windows(2).position(|two| two == b"XX").unwrap();
    bytes[at..at + 2].copy_from_slice(b"..");
    let (mut send, _receive) = client.connection.open_bi().await.unwrap();
    send.write_all(&bytes).await.unwrap();
    closed(&client.connection).await;

    let client = server.client(1).await;
    let ((mut control, _receive), connection) = client.into_control();
    control.write_all(&[0xff; 64]).await.unwrap();
    closed(&connection).await;
    served(&witness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_hurts_nobody_else() {
    let server = Server::in_memory();
    let witness = server.client(9).await;
    for seed in 0..100 {
        let client = server.client(1).await;
        let (mut send, _receive) = client.connection.open_bi().await.unwrap();
        let mut bytes: Vec<u8> = noise(seed).take(400).collect();
        let len = (seed % 390) as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        // Most end the connection, some may be messages.
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        let _ = send.stopped().await;
    }
    served(&witness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_breaks_off_is_dropped_alone() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    let push = |end| {
        let request = ChangeRequest::Push {
            handle,
            epoch: EPOCH,
            extents: vec![Extent { start: 0, end }],
        };
        Request::Change(client.sequence(), request)
    };
    let bytes = codec::encode(&push(1)).unwrap();
    let (mut send, mut receive) = client.connection.open_bi().await.unwrap();
    send.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    send.finish().unwrap();
    assert!(matches!(
        stream::receive::<Reply>(&mut receive).await,
        Err(StreamError::Link(_))
    ));
    let (mut send, mut receive) = client.ask(&push(1000)).await;
    let some = Bytes::from_static(b"not enough");
    stream::send_frame(&mut send, some, false).await.unwrap();
    send.finish().unwrap();
    assert!(matches!(
        stream::receive::<Reply>(&mut receive).await,
        Err(StreamError::Link(_))
    ));
    let (mut send, mut receive) = client.ask(&push(1000)).await;
    send.reset(0u32.into()).unwrap();
    assert!(matches!(
        stream::receive::<Reply>(&mut receive).await,
        Err(StreamError::Link(_))
    ));
    assert!(
        client.bytes(handle, 0, 1000).await.is_empty(),
        "nothing was applied"
    );
    served(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_do_not_fit_end_the_connection() {
    let server = Server::in_memory();
    let witness = server.client(9).await;
    let frame = |kind, len, wire| frame::Header { kind, len, wire }.encode().to_vec();
    let beyond = frame(frame::Kind::Zero, 101, 0);
    let mut bomb = frame(frame::Kind::Lz4, FRAME_BYTES_MAX, 8);
    bomb.extend([0xff; 8]);
    let unknown = vec![7; frame::HEADER_BYTES];
    let mut reserved = frame(frame::Kind::Zero, 100, 0);
    reserved[1] = 1;
    for (end, bytes) in [
        (100, beyond),
        (u64::from(FRAME_BYTES_MAX), bomb),
        (100, unknown),
        (100, reserved),
    ] {
        let client = server.client(1).await;
        let root = client.root();
        let create = ChangeRequest::Create {
            dir: root,
            name: name("file"),
            mode: 0o600,
            exclusive: false,
            by: BY,
        };
        let (handle, _) = opened(client.change(create).await);
        let request = ChangeRequest::Push {
            handle,
            epoch: EPOCH,
            extents: vec![Extent { start: 0, end }],
        };
        let (mut send, _receive) = client
            .ask(&Request::Change(client.sequence(), request))
            .await;
        send.write_all(&bytes).await.unwrap();
        closed(&client.connection).await;
        let attr = witness.look_up(&witness.root(), "file").await.unwrap();
        assert_eq!(attr.size, 0, "nothing was applied");
    }
    served(&witness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_in_crumbs_is_refused() {
    let server = Server::in_memory();
    let client = server.client(1).await;
    let (handle, _) = client.create("file").await;
    let request = ChangeRequest::Push {
        handle,
        epoch: EPOCH,
        extents: vec![Extent {
            start: 0,
            end: 100_000,
        }],
    };
    let (mut send, _receive) = client
        .ask(&Request::Change(client.sequence(), request))
        .await;
    for _ in 0..2000 {
        if stream::send_zeroes(&mut send, 1).await.is_err() {
            break;
        }
    }
    closed(&client.connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_belong_to_their_client() {
    let server = Server::in_memory();
    let owner = server.client(1).await;
    let (handle, file) = owner.create("file").await;
    owner.push(handle, 0, b"secret").await.unwrap();
    let thief = server.hello(&server.other, hello(2)).await.unwrap();
    let bad = Errno::BADF.raw_os_error();
    assert_eq!(thief.pull(handle, 0, 6).await.map(|_| ()), Err(bad));
    assert_eq!(thief.push(handle, 0, b"x").await, Err(bad));
    assert_eq!(thief.read(ReadRequest::Close { handle }).await, Err(bad));
    let request = ReadRequest::GetAttr {
        node: file,
        handle: Some(handle),
    };
    assert_eq!(thief.read(request).await, Err(bad));
    assert_eq!(owner.bytes(handle, 0, 6).await, b"secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_never_come_hold_up_only_their_own_client() {
    let server = Server::in_memory();
    let slow = server.client(1).await;
    let (handle, _) = slow.create("file").await;
    let announce = || {
        let request = ChangeRequest::Push {
            handle,
            epoch: EPOCH,
            extents: vec![Extent {
                start: 0,
                end: TRANSFER_BYTES_MAX,
            }],
        };
        Request::Change(slow.sequence(), request)
    };
    let mut streams = Vec::new();
    for _ in 0..room(1) as u64 / TRANSFER_BYTES_MAX + 4 {
        streams.push(slow.ask(&announce()).await);
    }
    let other = server.client(2).await;
    served(&other).await;
    // What needs no room goes on.
    slow.look_up(&slow.root(), "file").await.unwrap();
    for (mut send, _) in streams {
        send.reset(0u32.into()).unwrap();
    }
    served(&slow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_are_not_taken_hold_up_only_each_other() {
    let server = Server::in_memory();
    let slow = server.client(1).await;
    let (handle, file) = slow.create("file").await;
    let bytes: Vec<u8> = noise(5).take(TRANSFER_BYTES_MAX as usize).collect();
    slow.push(handle, 0, &bytes).await.unwrap();
    let mut untaken = Vec::new();
    for _ in 0..60 {
        let pull = ReadRequest::Pull {
            handle,
            start: 0,
            end: TRANSFER_BYTES_MAX,
            demand: false,
            compress: false,
        };
        let (mut send, receive) = slow.ask(&Request::Read(pull)).await;
        send.finish().unwrap();
        untaken.push(receive);
    }
    let other = server.client(2).await;
    let (reading, _) = other.open(&file, Access::Read).await;
    assert!(
        other.bytes(reading, 0, TRANSFER_BYTES_MAX).await == bytes,
        "bytes differ"
    );
    drop(untaken);
    assert!(
        slow.bytes(handle, 0, TRANSFER_BYTES_MAX).await == bytes,
        "bytes differ"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_not_taken_are_bounded() {
    let outbox = Outbox::default();
    let event = |change| AuthorityEvent::Invalidate {
        change,
        id: FileId {
            dev: 0,
            ino: 0,
            born: 0,
        },
        at: Tick(change),
        what: Stale::Attributes,
    };
    outbox.put(event(1));
    outbox.renewed(1);
    outbox.renewed(2);
    let renewed = AuthorityEvent::Renewed { sent: 2 };
    assert_eq!(outbox.take().await, Ok(vec![event(1), renewed]));
    for change in 0..100_000 {
        outbox.put(event(change));
    }
    assert_eq!(outbox.take().await, Err(End::Deaf));
    outbox.end(End::Expired);
    assert_eq!(outbox.take().await, Err(End::Deaf));
}

/// What the limits of sessions need, without as many connections and files.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_their_files_are_bounded() {
    use crate::node::authority::{AuthorityOptions, Service};
    let server = Server::in_memory();
    let connection = server.connect(&server.key).await;
    let store = std::sync::Arc::new(crate::store::memory::Memory::new(1 << 30));
    let root = store.root().unwrap();
    let service = Service::new(store.clone(), AuthorityOptions::default());
    let tree = || service.trees.get(&RelPath::root()).unwrap();
    let keys: Vec<_> = (0..=CLIENTS_MAX / SESSIONS_PER_KEY_MAX)
        .map(|_| Identity::generate().public())
        .collect();
    let attach = |number: usize| {
        let mut hello = hello(0);
        hello.client.0[..8].copy_from_slice(&number.to_le_bytes());
        // As many to a key as one may have.
        let key = keys[number / SESSIONS_PER_KEY_MAX];
        let key = (key, service.shares.of(key));
        service
            .sessions
            .attach(&hello, key, tree(), &connection, &service.coherence)
    };
    let first = attach(0).unwrap();
    for number in 1..SESSIONS_PER_KEY_MAX {
        attach(number).unwrap();
    }
    let too_many = (keys[0], service.shares.of(keys[0]));
    let too_many = service.sessions.attach(
        &hello(0xff),
        too_many,
        tree(),
        &connection,
        &service.coherence,
    );
    assert_eq!(too_many.err(), Some(Refusal::Full));
    for number in SESSIONS_PER_KEY_MAX..CLIENTS_MAX {
        attach(number).unwrap();
    }
    assert_eq!(attach(CLIENTS_MAX).err(), Some(Refusal::Full));
    attach(7).unwrap();
    // One that is away makes room only when its lease has run out: it may still answer from its copies.
    service.sessions.detach(&first, &service.coherence);
    assert_eq!(attach(CLIENTS_MAX).err(), Some(Refusal::Full));

    let root = node(&root, "");
    let (attr, _) = store.create(&root, &name("file"), 0o600, true, BY).unwrap();
    let open = || {
        let file = store.open(&node(&attr, "file"), Access::Read).unwrap();
        let node = service.nodes.get(attr.id);
        let kept = first.session.keep(node, file, Access::Read);
        kept.map(|(id, _)| id)
    };
    let any = open().unwrap();
    for _ in 1..HANDLES_MAX.min(service.shares.handles_per_key_max()) {
        open().unwrap();
    }
    assert_eq!(open(), Err(Errno::MFILE));
    first.session.close(any).unwrap();
    open().unwrap();
}
