//! Real QUIC over loopback.

use super::stream::{self, Frame, StreamError};
use super::*;
use crate::wire::frame::{FRAME_BYTES_MAX, Header, Kind};
use crate::wire::{MESSAGE_BYTES_MAX, TRANSFER_BYTES_MAX};
use bytes::Bytes;
use proptest::prelude::*;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn listener(identity: &Identity, authorized: Authorized) -> Listener {
    Listener::new((Ipv4Addr::LOCALHOST, 0).into(), identity, authorized).unwrap()
}

fn dialer(listener: &Listener, identity: &Identity, trust: ServerTrust) -> Dialer {
    let port = listener.address().unwrap().port();
    Dialer::new("127.0.0.1", port, identity.clone(), trust).unwrap()
}

/// Two ends that trust each other, and what keeps them up.
async fn pair() -> (quinn::Connection, quinn::Connection, Listener, Dialer) {
    let (server, client) = (Identity::generate(), Identity::generate());
    let listener = listener(&server, Authorized::Keys(vec![client.public()]));
    let dialer = dialer(&listener, &client, ServerTrust::Key(server.public()));
    let (near, far) = tokio::join!(dialer.connect(PATIENCE), listener.accept());
    let (far, key, _) = far.unwrap();
    assert_eq!(key, client.public());
    (near.unwrap(), far, listener, dialer)
}

/// What is logged by this thread while the guard lives.
fn captured_log() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = Log(log.clone());
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

fn text(log: &Mutex<Vec<u8>>) -> String {
    String::from_utf8(log.lock().unwrap().clone()).unwrap()
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let (near, far, listener, dialer) = pair().await;
    let (mut send, mut receive) = near.open_bi().await.unwrap();
    stream::send(&mut send, &"ping".to_string()).await.unwrap();
    let (mut answer, mut question) = far.accept_bi().await.unwrap();
    let got: Option<String> = stream::receive(&mut question).await.unwrap();
    assert_eq!(got.as_deref(), Some("ping"));
    stream::send(&mut answer, &7u32).await.unwrap();
    answer.finish().unwrap();
    assert_eq!(stream::receive(&mut receive).await.unwrap(), Some(7u32));
    assert_eq!(stream::receive::<u32>(&mut receive).await.unwrap(), None);

    listener.close();
    near.closed().await;
    assert!(!stream::is_unauthorized(&near));
    assert!(listener.accept().await.is_none());
    listener.wait_closed().await;
    dialer.wait_closed().await;
}

#[tokio::test]
async fn an_unknown_client_is_refused_and_both_sides_say_so() {
    let (log, _guard) = captured_log();
    let (server, client, friend) = (
        Identity::generate(),
        Identity::generate(),
        Identity::generate(),
    );
    let listener = listener(&server, Authorized::Keys(vec![friend.public()]));
    let trust = ServerTrust::Key(server.public());
    let stranger = dialer(&listener, &client, trust.clone());
    let said = match stranger.connect(PATIENCE).await {
        Ok(connection) => {
            tokio::select! {
                _ = connection.closed() => {}
                _ = listener.accept() => panic!("a stranger was let in"),
            }
            assert!(stream::is_unauthorized(&connection));
            stranger.unauthorized().to_string()
        }
        Err(error) => {
            assert!(matches!(error, ConnectError::Unauthorized { .. }));
            error.to_string()
        }
    };
    assert!(
        said.contains("memfs key authorize 'memfs-ed25519 "),
        "{said}"
    );
    let logged = text(&log);
    assert!(
        logged.contains(&client.public().fingerprint()) && logged.contains("127.0.0.1:"),
        "{logged}"
    );
    // The listener goes on, and never hands the stranger out.
    let welcome = dialer(&listener, &friend, trust);
    let (near, far) = tokio::join!(welcome.connect(PATIENCE), listener.accept());
    near.unwrap();
    assert_eq!(far.unwrap().1, friend.public());
}

#[tokio::test]
async fn a_wrong_server_is_refused_before_anything_is_sent() {
    let (server, client) = (Identity::generate(), Identity::generate());
    let listener = listener(&server, Authorized::Keys(vec![client.public()]));
    let expected = Identity::generate().public();
    let fingerprint = expected.fingerprint();
    for trust in [
        ServerTrust::Key(expected),
        ServerTrust::Fingerprint(fingerprint.clone()),
    ] {
        let dialer = dialer(&listener, &client, trust);
        let error = dialer.connect(PATIENCE).await.unwrap_err();
        assert!(matches!(error, ConnectError::Untrusted(_)));
        let said = error.to_string();
        for part in ["127.0.0.1:", &server.public().fingerprint(), &fingerprint] {
            assert!(said.contains(part), "{said}");
        }
        // The server sees a connection that ends without a stream.
        let (far, ..) = listener.accept().await.unwrap();
        assert!(far.accept_bi().await.is_err());
    }
    let trust = ServerTrust::Fingerprint(server.public().fingerprint());
    let dialer = dialer(&listener, &client, trust);
    dialer.connect(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn unknown_servers_are_remembered_and_changed_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memfs/known_hosts");
    let (server, client) = (Identity::generate(), Identity::generate());
    let first = listener(&server, Authorized::Keys(vec![client.public()]));
    let known = |unknown| ServerTrust::KnownHosts {
        own: client.public(),
        path: path.clone(),
        unknown,
    };
    // Tests have no terminal on standard input: asking is refusing.
    let unheard = dialer(&first, &client, known(Unknown::Ask));
    let said = unheard.connect(PATIENCE).await.unwrap_err().to_string();
    let server_key = format!("--server-key {}", server.public().fingerprint());
    assert!(
        said.contains("unknown server") && said.contains(&server_key),
        "{said}"
    );
    assert!(!path.exists());

    let accepting = dialer(&first, &client, known(Unknown::Accept));
    accepting.connect(PATIENCE).await.unwrap();
    let remembered = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        remembered,
        format!("{} {}\n", accepting.name(), server.public())
    );
    let asking = dialer(&first, &client, known(Unknown::Ask));
    asking.connect(PATIENCE).await.unwrap();

    // Another server at the same address.
    let address = first.address().unwrap();
    first.close();
    first.wait_closed().await;
    drop(first);
    let second = loop {
        // The socket is closed by a task of its own.
        let authorized = Authorized::Keys(vec![client.public()]);
        match Listener::new(address, &Identity::generate(), authorized) {
            Ok(listener) => break listener,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
        }
        tokio::task::yield_now().await;
    };
    for unknown in [Unknown::Ask, Unknown::Accept] {
        let dialer = dialer(&second, &client, known(unknown));
        let said = dialer.connect(PATIENCE).await.unwrap_err().to_string();
        let line = format!("{}:1", path.display());
        assert!(
            said.contains("HAS CHANGED") && said.contains(&line),
            "{said}"
        );
        assert!(said.contains(&server.public().fingerprint()), "{said}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), remembered);

    // One's own key needs no entry.
    let own = listener(&client, Authorized::Keys(vec![client.public()]));
    let dialer = dialer(&own, &client, known(Unknown::Ask));
    dialer.connect(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn authorized_keys_count_from_the_moment_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authorized_keys");
    let (server, client) = (Identity::generate(), Identity::generate());
    let authorized = Authorized::File {
        own: server.public(),
        path: path.clone(),
    };
    let listener = listener(&server, authorized);
    let trust = ServerTrust::Key(server.public());

    let own = dialer(&listener, &server, trust.clone());
    let (near, far) = tokio::join!(own.connect(PATIENCE), listener.accept());
    near.unwrap();
    assert_eq!(far.unwrap().1, server.public());

    let other = dialer(&listener, &client, trust);
    if let Ok(connection) = other.connect(PATIENCE).await {
        connection.closed().await;
        assert!(stream::is_unauthorized(&connection));
    }
    assert!(Authorized::authorize(&path, &client.public(), &Grant::default(), "a friend").unwrap());
    let (near, far) = tokio::join!(other.connect(PATIENCE), listener.accept());
    near.unwrap();
    assert_eq!(far.unwrap().1, client.public());
}

#[tokio::test]
async fn garbage_and_silence_harm_nobody() {
    let (server, client) = (Identity::generate(), Identity::generate());
    let listener = listener(&server, Authorized::Keys(vec![client.public()]));
    let noise = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    noise.connect(listener.address().unwrap()).unwrap();
    let mut random = ring::digest::digest(&ring::digest::SHA256, b"noise")
        .as_ref()
        .to_vec();
    for n in 0..2000usize {
        random = ring::digest::digest(&ring::digest::SHA256, &random)
            .as_ref()
            .to_vec();
        let mut datagram = random.repeat(1 + n % 45);
        if n % 2 == 0 {
            // A long header of QUIC version 1: an Initial that does not decrypt.
            datagram.splice(0..6, [0xc3, 0, 0, 0, 1, 8]);
        }
        // A full buffer may refuse some.
        let _ = noise.send(&datagram);
    }
    let dialer = dialer(&listener, &client, ServerTrust::Key(server.public()));
    let (near, far) = tokio::join!(dialer.connect(PATIENCE), listener.accept());
    near.unwrap();
    assert_eq!(far.unwrap().1, client.public());
}

#[tokio::test]
async fn nobody_there_and_no_such_name() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let identity = Identity::generate();
    let trust = ServerTrust::Key(identity.public());
    let dialer = Dialer::new("127.0.0.1", port, identity.clone(), trust.clone()).unwrap();
    let error = dialer
        .connect(Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    drop(silent);
    let error = dialer.connect(PATIENCE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    let dialer = Dialer::new("no such host", port, identity, trust).unwrap();
    let error = dialer.connect(PATIENCE).await.unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error}");
}

#[tokio::test]
async fn a_name_with_several_addresses_needs_one_that_answers() {
    // The server is on IPv4 only, localhost may be ::1 first.
    let (server, client) = (Identity::generate(), Identity::generate());
    let listener = listener(&server, Authorized::Keys(vec![client.public()]));
    let port = listener.address().unwrap().port();
    let trust = ServerTrust::Key(server.public());
    let dialer = Dialer::new("LocalHost", port, client, trust).unwrap();
    assert_eq!(dialer.name(), format!("localhost:{port}"));
    dialer.connect(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn addresses_of_ipv6_are_written_with_brackets() {
    let (server, client) = (Identity::generate(), Identity::generate());
    let authorized = Authorized::Keys(vec![client.public()]);
    let listener = match Listener::new("[::1]:0".parse().unwrap(), &server, authorized) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("SKIPPED: no IPv6 here: {error}");
            return;
        }
    };
    let port = listener.address().unwrap().port();
    for host in ["::1", "[::1]"] {
        let trust = ServerTrust::Key(server.public());
        let dialer = Dialer::new(host, port, client.clone(), trust).unwrap();
        assert_eq!(dialer.name(), format!("[::1]:{port}"));
        dialer.connect(PATIENCE).await.unwrap();
    }
}

/// Passes datagrams on between whoever sends to it and `server`; towards the server from the socket it
/// is given, as an address translator does. Answers are dropped where there is no `answering`.
async fn relay(
    front: Arc<tokio::net::UdpSocket>,
    server: std::net::SocketAddr,
    mut back: tokio::sync::watch::Receiver<Arc<tokio::net::UdpSocket>>,
    answering: bool,
) {
    let (mut inward, mut outward) = (vec![0; 65536], vec![0; 65536]);
    let mut client = None;
    loop {
        let socket = back.borrow_and_update().clone();
        tokio::select! {
            Ok((len, from)) = front.recv_from(&mut inward) => {
                client = Some(from);
                socket.send_to(&inward[..len], server).await.unwrap();
            }
            Ok(len) = socket.recv(&mut outward) => {
                if let (Some(client), true) = (client, answering) {
                    front.send_to(&outward[..len], client).await.unwrap();
                }
            }
            Ok(()) = back.changed() => {}
        }
    }
}

async fn any_socket() -> Arc<tokio::net::UdpSocket> {
    Arc::new(
        tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap(),
    )
}

#[tokio::test]
async fn a_connection_outlives_a_change_of_address() {
    let (server, client) = (Identity::generate(), Identity::generate());
    let listener = listener(&server, Authorized::Keys(vec![client.public()]));
    let (front, first) = (any_socket().await, any_socket().await);
    let (change, back) = tokio::sync::watch::channel(first.clone());
    let port = front.local_addr().unwrap().port();
    let relaying = tokio::spawn(relay(front, listener.address().unwrap(), back, true));
    let trust = ServerTrust::Key(server.public());
    let dialer = Dialer::new("127.0.0.1", port, client, trust).unwrap();
    let (near, far) = tokio::join!(dialer.connect(PATIENCE), listener.accept());
    let (near, (far, ..)) = (near.unwrap(), far.unwrap());
    assert_eq!(far.remote_address(), first.local_addr().unwrap());

    let (mut send, mut receive) = near.open_bi().await.unwrap();
    stream::send(&mut send, &1u32).await.unwrap();
    let (mut answer, mut question) = far.accept_bi().await.unwrap();
    assert_eq!(stream::receive(&mut question).await.unwrap(), Some(1u32));

    let second = any_socket().await;
    change.send(second.clone()).unwrap();
    stream::send(&mut send, &2u32).await.unwrap();
    assert_eq!(stream::receive(&mut question).await.unwrap(), Some(2u32));
    assert_eq!(far.remote_address(), second.local_addr().unwrap());
    stream::send(&mut answer, &3u32).await.unwrap();
    assert_eq!(stream::receive(&mut receive).await.unwrap(), Some(3u32));
    relaying.abort();
}

#[tokio::test]
async fn handshakes_that_never_end_keep_nobody_out() {
    let (server, client) = (Identity::generate(), Identity::generate());
    let listener = listener(&server, Authorized::Keys(vec![client.public()]));
    let trust = ServerTrust::Key(server.public());
    let mut halves = Vec::new();
    // More than are let in without a proof of their address.
    for _ in 0..50 {
        let (front, counted) = (any_socket().await, any_socket().await);
        let (_change, back) = tokio::sync::watch::channel(counted.clone());
        let port = front.local_addr().unwrap().port();
        let server = listener.address().unwrap();
        halves.push(tokio::spawn(relay(front, server, back, false)));
        let dialer = Dialer::new("127.0.0.1", port, client.clone(), trust.clone()).unwrap();
        halves.push(tokio::spawn(async move {
            assert!(dialer.connect(PATIENCE).await.is_err());
        }));
    }
    let dialer = dialer(&listener, &client, trust);
    for _ in 0..3 {
        let (near, far) = tokio::join!(dialer.connect(PATIENCE), listener.accept());
        near.unwrap();
        assert_eq!(far.unwrap().1, client.public());
    }
    for half in halves {
        assert!(!half.is_finished());
        half.abort();
    }
}

/// Bytes as they are on a stream, and what is made of them.
async fn received<M: bincode::Decode<()>>(bytes: &[u8]) -> Result<Option<M>, StreamError> {
    let (near, far, _listener, _dialer) = pair().await;
    let (mut send, _) = near.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    let (_, mut receive) = far.accept_bi().await.unwrap();
    stream::receive(&mut receive).await
}

#[tokio::test]
async fn messages_are_bounded_and_whole() {
    let protocol = |result: Result<Option<Vec<u8>>, StreamError>| match result {
        Err(StreamError::Protocol(what)) => what,
        other => panic!("{other:?}"),
    };
    let too_long = (MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes();
    assert!(protocol(received(&too_long).await).contains("at most"));
    assert!(protocol(received(&[0xff; 4]).await).contains("at most"));
    // A vector of three bytes, and one more.
    let trailing = [5, 0, 0, 0, 3, 1, 2, 3, 4];
    assert!(protocol(received(&trailing).await).contains("too many"));
    // A vector that says it is longer than the message.
    protocol(received(&[3, 0, 0, 0, 9, 1, 2]).await);
    protocol(received(&[0, 0, 0, 0]).await);
    for truncated in [&[5u8, 0][..], &[5, 0, 0, 0], &[5, 0, 0, 0, 3, 1]] {
        let result = received::<Vec<u8>>(truncated).await;
        assert!(matches!(result, Err(StreamError::Link(_))), "{result:?}");
    }
    assert!(received::<Vec<u8>>(&[]).await.unwrap().is_none());
    let good = [4, 0, 0, 0, 3, 1, 2, 3];
    assert_eq!(received(&good).await.unwrap(), Some(vec![1u8, 2, 3]));
}

#[tokio::test]
async fn the_longest_message_passes_and_a_longer_one_is_not_sent() {
    let (near, far, _listener, _dialer) = pair().await;
    let (mut send, _) = near.open_bi().await.unwrap();
    // bincode counts the length in front of the bytes as the eight it has in memory.
    let longest = vec![7u8; MESSAGE_BYTES_MAX - 8];
    let sender = async {
        stream::send(&mut send, &longest).await.unwrap();
        let longer = vec![7u8; MESSAGE_BYTES_MAX];
        let error = stream::send(&mut send, &longer).await.unwrap_err();
        assert!(matches!(error, StreamError::Protocol(_)), "{error}");
    };
    let receiver = async {
        let (_, mut receive) = far.accept_bi().await.unwrap();
        stream::receive::<Vec<u8>>(&mut receive).await.unwrap()
    };
    assert_eq!(tokio::join!(sender, receiver).1.unwrap(), longest);
}

#[tokio::test]
async fn bad_frames_are_refused() {
    async fn frame(bytes: &[u8], len_max: u64) -> Result<Frame, StreamError> {
        let (near, far, _listener, _dialer) = pair().await;
        let (mut send, _) = near.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        let (_, mut receive) = far.accept_bi().await.unwrap();
        stream::receive_frame(&mut receive, len_max).await
    }
    let header = |kind, len, wire| Header { kind, len, wire }.encode().to_vec();
    let lz4 = |payload: &[u8], len| {
        let mut bytes = header(Kind::Lz4, len, payload.len() as u32);
        bytes.extend_from_slice(payload);
        bytes
    };
    let packed = lz4_flex::block::compress(&[1; 1000]);
    for bad in [
        vec![9; 12],
        header(Kind::Data, 100, 100),
        header(Kind::Zero, 100, 0),
        lz4(&packed, 999),
        lz4(&packed, 1001),
        lz4(&[0xff; 50], 1000),
    ] {
        let result = frame(&bad, if bad.len() == 12 { 99 } else { 4096 }).await;
        assert!(
            matches!(result, Err(StreamError::Protocol(_))),
            "{result:?}"
        );
    }
    for truncated in [&[][..], &[0; 5], &header(Kind::Data, 5, 5)] {
        let result = frame(truncated, 4096).await;
        assert!(matches!(result, Err(StreamError::Link(_))), "{result:?}");
    }
    let zero = frame(&header(Kind::Zero, 4096, 0), 4096).await.unwrap();
    assert_eq!(zero, Frame::Zero(4096));
    let data = frame(&lz4(&packed, 1000), 1000).await.unwrap();
    assert_eq!(data, Frame::Data(vec![vec![1; 1000].into()]));
}

#[tokio::test]
async fn frames_that_cannot_be_are_not_sent() {
    let (near, _far, _listener, _dialer) = pair().await;
    let (mut send, _) = near.open_bi().await.unwrap();
    for len in [0, FRAME_BYTES_MAX as usize + 1] {
        let result = stream::send_frame(&mut send, vec![1; len].into(), true).await;
        assert!(matches!(result, Err(StreamError::Protocol(_))));
    }
    for len in [0, TRANSFER_BYTES_MAX as u32 + 1] {
        let result = stream::send_zeroes(&mut send, len).await;
        assert!(matches!(result, Err(StreamError::Protocol(_))));
    }
}

#[tokio::test]
async fn a_stream_that_is_not_wanted_says_so() {
    let (near, far, _listener, _dialer) = pair().await;
    let (mut send, mut answer) = near.open_bi().await.unwrap();
    stream::send(&mut send, &1u32).await.unwrap();
    let (mut reply, question) = far.accept_bi().await.unwrap();
    drop(question);
    stream::send(&mut reply, &2u32).await.unwrap();
    let refused = loop {
        let frame = Bytes::from_static(&[1; 4096]);
        if let Err(error) = stream::send_frame(&mut send, frame, false).await {
            break error;
        }
    };
    assert!(matches!(refused, StreamError::Stopped), "{refused}");
    assert_eq!(stream::receive(&mut answer).await.unwrap(), Some(2u32));
}

/// A run of bytes as memory holds them: noise, text, zeroes.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![1usize..200, 4000usize..9000, Just(FRAME_BYTES_MAX as usize)];
    (len, any::<u64>(), 0u8..3).prop_map(|(len, seed, kind)| {
        let mut state = seed | 1;
        let noise = std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        match kind {
            0 => vec![0; len],
            1 => noise.map(|byte| byte % 4).take(len).collect(),
            _ => noise.take(len).collect(),
        }
    })
}

#[test]
fn frames_arrive_as_they_were_sent() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (near, far, _listener, _dialer) = runtime.block_on(pair());
    let frames = proptest::collection::vec((content(), any::<bool>()), 1..20);
    proptest!(ProptestConfig::with_cases(32), |(frames in frames)| {
        let (near, far, sent) = (near.clone(), far.clone(), frames.clone());
        runtime.block_on(async {
            let sender = tokio::spawn(async move {
                let (mut send, _) = near.open_bi().await.unwrap();
                for (bytes, compress) in sent {
                    stream::send_frame(&mut send, bytes.into(), compress).await.unwrap();
                }
            });
            let (_, mut receive) = far.accept_bi().await.unwrap();
            for (bytes, _) in &frames {
                let len = bytes.len() as u64;
                let got = match stream::receive_frame(&mut receive, len).await.unwrap() {
                    Frame::Data(pieces) => pieces.concat(),
                    Frame::Zero(len) => vec![0; len as usize],
                };
                assert!(got == *bytes);
            }
            let end = stream::receive_frame(&mut receive, 1).await;
            assert!(matches!(end, Err(StreamError::Link(_))));
            sender.await.unwrap();
        });
    });
}
