//! What is no message, comes at the wrong time, or belongs to somebody else.

use crate::attacker::*;
use crate::common::{Home, noise};
use memfs::region::{ClientId, Tick};
use memfs::transport::stream;
use memfs::wire::frame::{FRAME_BYTES_MAX, Header, Kind};
use memfs::wire::*;
use rustix::io::Errno;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// More than this a server that is told rubbish does not take.
const MEMORY_MAX: u64 = 32 << 20;

fn stat_fs() -> Request {
    Request::Read(ReadRequest::StatFs)
}

fn whole(message: &[u8]) -> Vec<u8> {
    let mut bytes = (message.len() as u32).to_le_bytes().to_vec();
    bytes.extend(message);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_hello_nothing_is_answered() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let goodbye = codec::encode(&ReplicaEvent::Goodbye).unwrap();
    let request = codec::encode(&stat_fs()).unwrap();
    let huge = u32::MAX.to_le_bytes().to_vec();
    for bytes in [
        goodbye,
        request.clone(),
        huge,
        whole(&noise(100, 1)),
        whole(b""),
    ] {
        let connection = scene.connect().await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        closed(&connection).await;
    }
    // Half a hello, and requests beside it.
    let connection = scene.connect().await;
    let (mut control, _events) = connection.open_bi().await.unwrap();
    let said = codec::encode(&hello()).unwrap();
    control.write_all(&said[..said.len() / 2]).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&request).await.unwrap();
    send.finish().unwrap();
    control.finish().unwrap();
    assert!(stream::receive::<Reply>(&mut receive).await.is_err());
    // And silence: it ends by itself.
    let silent = scene.connect().await;
    scene.is_well(before, MEMORY_MAX);
    closed(&silent).await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_hello_ends_the_connection() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let first = scene.attacker().await;
    stream::send(&mut *first.control.lock().await, &hello())
        .await
        .unwrap();
    closed(&first.connection).await;
    let second = scene.attacker().await;
    let (mut send, _receive) = second.connection.open_bi().await.unwrap();
    stream::send(&mut send, &hello()).await.unwrap();
    closed(&second.connection).await;
    scene.is_well(before, MEMORY_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_ends_the_connection_it_comes_on() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let request = codec::encode(&stat_fs()).unwrap();
    let mut longer = request.clone();
    longer[0] += 1;
    longer.push(0);
    for bytes in [
        u32::MAX.to_le_bytes().to_vec(),
        (MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes().to_vec(),
        whole(&noise(1000, 2)),
        longer,
        whole(&[]),
        // A vector that claims to have 2^63 elements.
        whole(&[1, 1, 0, 9, 1, 1, 253, 0, 0, 0, 0, 0, 0, 0, 0x80]),
    ] {
        let attacker = scene.attacker().await;
        let (mut send, _receive) = attacker.connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        closed(&attacker.connection).await;
    }
    let attacker = scene.attacker().await;
    let mut control = attacker.control.lock().await;
    control.write_all(&whole(&noise(100, 3))).await.unwrap();
    closed(&attacker.connection).await;
    scene.is_well(before, MEMORY_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_lie_end_the_connection() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let frame = |kind, len, payload: &[u8]| {
        let wire = payload.len() as u32;
        let mut bytes = Header { kind, len, wire }.encode().to_vec();
        bytes.extend(payload);
        bytes
    };
    // A mebibyte of zeroes in four kilobytes, told to be less, and to be as much as a frame may be.
    let bomb = lz4_flex::block::compress(&vec![0; 1 << 20]);
    let frames = [
        frame(Kind::Lz4, 8192, &bomb),
        frame(Kind::Lz4, FRAME_BYTES_MAX, &bomb),
        frame(Kind::Lz4, FRAME_BYTES_MAX, &noise(100, 4)),
        frame(Kind::Data, FRAME_BYTES_MAX + 1, &[]),
        frame(Kind::Zero, u32::MAX, &[]),
        frame(Kind::Data, 0, &[]),
        noise(12, 5),
    ];
    for (number, bytes) in frames.into_iter().enumerate() {
        let attacker = scene.attacker().await;
        let (handle, _) = attacker.create(&format!("file-{number}")).await.unwrap();
        let (start, end) = (0, u64::from(FRAME_BYTES_MAX));
        let request = push(handle, vec![Extent { start, end }]);
        let (mut send, _receive) = attacker.ask(&request).await;
        send.write_all(&bytes).await.unwrap();
        closed(&attacker.connection).await;
        let file = scene.served(&format!("file-{number}"));
        assert_eq!(std::fs::metadata(file).unwrap().len(), 0);
    }
    scene.is_well(before, MEMORY_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_anothers_is_out_of_reach() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let said = hello();
    let victim = scene.hello(&scene.own_key(), said.clone()).await.unwrap();
    let (handle, file) = victim.create("file").await.unwrap();
    victim.push(handle, 0, b"mine").await.unwrap();

    // Its session, by its id.
    let stolen = scene.hello(&scene.key, said.clone()).await;
    assert_eq!(stolen.err(), Some(Refusal::Client));
    // Its handle, by its number and those around.
    let attacker = scene.attacker().await;
    let bad = Errno::BADF.raw_os_error();
    for number in (0..1000).chain([u64::MAX, handle.number]) {
        let handle = HandleId { number, ..handle };
        assert_eq!(attacker.pull(handle, 0, 4).await, Err(bad));
        assert_eq!(attacker.read(ReadRequest::Close { handle }).await, Err(bad));
    }
    assert_eq!(attacker.push(handle, 0, b"theirs").await, Err(bad));
    // Its subscriptions and its lease: what is said counts for who says it.
    let forget = vec![(file.id, Tick(u64::MAX))];
    attacker.tell(ReplicaEvent::Forget(forget)).await;
    for change in 0..1000 {
        attacker.tell(ReplicaEvent::Taken { change }).await;
    }
    attacker.leave().await;
    assert_eq!(victim.pull(handle, 0, 100).await.unwrap(), b"mine");
    let again = scene.hello(&scene.own_key(), said).await.unwrap();
    assert!(again.welcome.resumed);
    assert_eq!(again.pull(handle, 0, 100).await.unwrap(), b"mine");

    // Files by ids that were guessed.
    let attacker = scene.attacker().await;
    let stale = Errno::STALE.raw_os_error();
    for ino in (0..200).chain([u64::MAX]) {
        for dev in [0, file.id.dev, u64::MAX] {
            let id = FileId { dev, ino, born: 0 };
            let open = attacker.open(&at(id, "file"), Access::Read).await;
            assert_eq!(open, Err(stale));
            let (node, by) = (at(id, ""), ClientId([0; 16]));
            let after = Tick(0);
            let only = attacker.read(ReadRequest::Only { node, after, by });
            assert_eq!(only.await, Err(stale));
        }
    }
    scene.is_well(before, MEMORY_MAX);
    again.leave().await;
    attacker.leave().await;
    scene.gives_back(before);
}

/// Between two programs, somebody who keeps what passes, changes some of it and sends much of it twice.
struct Relay {
    address: std::net::SocketAddr,
    meddled: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Relay {
    fn to(server: std::net::SocketAddr) -> Relay {
        let [front, back] = [(); 2].map(|()| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let look = Some(Duration::from_millis(50)); // for the end, between two looks
            socket.set_read_timeout(look).unwrap();
            Arc::new(socket)
        });
        back.connect(server).unwrap();
        let relay = Relay {
            address: front.local_addr().unwrap(),
            meddled: Arc::default(),
            ended: Arc::default(),
        };
        let client = Arc::new(std::sync::Mutex::new(None));
        let there = (client.clone(), front.clone(), back.clone());
        relay.carry(front.clone(), move |bytes, from| {
            *there.0.lock().unwrap() = from;
            let _ = there.2.send(bytes);
        });
        relay.carry(back, move |bytes, _| {
            if let Some(client) = *client.lock().unwrap() {
                let _ = front.send_to(bytes, client);
            }
        });
        relay
    }

    fn carry(
        &self,
        from: Arc<UdpSocket>,
        send: impl Fn(&[u8], Option<std::net::SocketAddr>) + Send + 'static,
    ) {
        let (ended, meddled) = (self.ended.clone(), self.meddled.clone());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            let mut kept = Vec::new();
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                let Ok((len, whence)) = from.recv_from(&mut buffer) else {
                    continue;
                };
                number += 1;
                let bytes = &mut buffer[..len];
                send(bytes, Some(whence));
                match number % 5 {
                    0 => kept = bytes.to_vec(),
                    1 => send(bytes, Some(whence)),
                    2 => {
                        let at = number * 31 % len;
                        bytes[at] ^= 1 << (number % 8);
                        send(bytes, Some(whence));
                    }
                    3 => send(&kept, Some(whence)),
                    _ => continue,
                }
                meddled.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_garbled_or_sent_again_on_the_way_changes_nothing() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let relay = Relay::to(scene.serve.address.parse().unwrap());
    let client = scene.deaf_through(relay.address).await.listening();
    let (handle, _) = client.create("file").await.unwrap();
    let bytes = noise(100_000, 6);
    for number in 0..20 {
        let start = number * bytes.len() as u64;
        client.push(handle, start, &bytes).await.unwrap();
    }
    let found = client.pull(handle, 0, 20 * bytes.len() as u64).await;
    assert!(found.unwrap() == bytes.repeat(20), "bytes differ");
    assert!(relay.meddled.load(Ordering::Relaxed) > 500);
    client.leave().await;
    scene.is_well(before, MEMORY_MAX);
    scene.gives_back(before);
}
