//! Too much of everything, and nothing where something is due.

use crate::attacker::*;
use crate::common::{Home, Mount, noise, wait_until};
use memfs::transport::{Grant, Identity, stream};
use memfs::wire::*;
use rustix::io::Errno;
use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Why a server closes a connection of which there are too many.
const CLOSE_BUSY: u32 = 19;
/// Directories that a server keeps open for who goes on listing them.
const LISTINGS_OPEN_MAX: usize = 32;

/// Waits until something that grows has come to rest.
async fn at_rest(grows: impl Fn() -> u64) -> u64 {
    let (mut last, mut same) = (0, 0);
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(100)).await; // between two looks
        let now = grows();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_end_take_little_memory() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let sent = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    // All the streams there may be: a gigabyte of requests of half a mebibyte, but for their last byte.
    let piece = vec![0xff; 16 << 10];
    for _ in 0..2048 {
        let (mut send, receive) = attacker.connection.open_bi().await.unwrap();
        let (sent, piece) = (sent.clone(), piece.clone());
        writers.push(tokio::spawn(async move {
            let _receive = receive;
            let length = MESSAGE_BYTES_MAX as u32 / 2;
            send.write_all(&length.to_le_bytes()).await?;
            let mut left = length as usize - 1;
            while left > 0 {
                let len = left.min(piece.len());
                send.write_all(&piece[..len]).await?;
                sent.fetch_add(len as u64, Ordering::Relaxed);
                left -= len;
            }
            std::future::pending::<Result<(), quinn::WriteError>>().await
        }));
    }
    let sent = at_rest(|| sent.load(Ordering::Relaxed)).await;
    assert!(sent > 60 * MIB, "{sent}");
    // What is received, the window of the connection, and what a hole in either costs.
    scene.is_well(before, 160 * MIB);
    // Another client of the same key does not notice.
    let other = scene.attacker().await;
    assert!(other.create("file").await.is_ok());
    other.leave().await;
    writers.into_iter().for_each(|writer| writer.abort());
    attacker.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_which_nothing_comes_hold_up_nobody_else() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let (handle, _) = attacker.create("file").await.unwrap();
    let mut begun = Vec::new();
    for number in 0..1000 {
        let (start, end) = (0, TRANSFER_BYTES_MAX);
        let (mut send, receive) = attacker
            .ask(&push(handle, vec![Extent { start, end }]))
            .await;
        if number % 2 == 0 {
            send.write_all(&[0]).await.unwrap();
        }
        begun.push((send, receive));
    }
    scene.is_well(before, 32 * MIB);
    // The file itself is not held up either.
    assert_eq!(fs::read(scene.mount.path("file")).unwrap(), b"");
    fs::write(scene.mount.path("file"), "by the honest one").unwrap();
    assert_eq!(
        fs::read(scene.served("file")).unwrap(),
        b"by the honest one"
    );
    drop(begun);
    attacker.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_take_little_memory() {
    let home = Home::new();
    let folder = home.folder("served/folder");
    for number in 0..1024 {
        let long = format!("{number:0>200}");
        File::create(folder.join(long)).unwrap();
    }
    fs::write(home.folder("served").join("file"), noise(8 << 20, 1)).unwrap();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let attr = attacker.look_up(&attacker.root(), "folder").await.unwrap();
    let dir = at(attr.id, "folder");
    let attr = attacker.look_up(&attacker.root(), "file").await.unwrap();
    let file = at(attr.id, "file");
    let handle = attacker.open(&file, Access::Read).await.unwrap();
    let mut unread = Vec::new();
    for number in 0..1500 {
        let request = match number % 3 {
            0 => pull(handle, 0, TRANSFER_BYTES_MAX),
            1 => Request::Read(ReadRequest::Hashes {
                handle,
                extents: vec![Extent {
                    start: 0,
                    end: 1 << 20,
                }],
                unit: 4096,
            }),
            _ => Request::Read(ReadRequest::ReadDir {
                dir: dir.clone(),
                cursor: 0,
                xattrs: true,
            }),
        };
        let (mut send, receive) = attacker.ask(&request).await;
        send.finish().unwrap();
        unread.push(receive);
    }
    let connection = attacker.connection.clone();
    let came = at_rest(|| connection.stats().udp_rx.bytes / MIB).await;
    assert!(came >= 60, "{came}");
    // What was read for pulls, what is in the window of the connection, and a few listings.
    scene.is_well(before, 320 * MIB);
    // It may have missed what it was told, and lost its lease, and what it had open with it.
    drop(unread);
    attacker.leave().await;
    scene.gives_back_but(before, LISTINGS_OPEN_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_of_huge_ranges_hold_up_nobody_else() {
    let home = Home::new();
    let path = home.folder("served").join("huge");
    File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let attr = attacker.look_up(&attacker.root(), "huge").await.unwrap();
    let handle = attacker
        .open(&at(attr.id, "huge"), Access::Read)
        .await
        .unwrap();
    let hashes = |start: u64, end, unit| ReadRequest::Hashes {
        handle,
        extents: vec![Extent { start, end }],
        unit,
    };
    let invalid = Errno::INVAL.raw_os_error();
    for request in [
        hashes(0, 1 << 40, 4096),
        hashes(0, u64::MAX, 4096),
        hashes(0, HASHED_BYTES_MAX + 4096, 4096),
        hashes(0, 4096, 1),
        hashes(0, 4096, u32::MAX),
        hashes(0, 4096, 0),
    ] {
        assert_eq!(attacker.read(request).await, Err(invalid));
    }
    let mut asked = Vec::new();
    for number in 0..1000 {
        let start = number * HASHED_BYTES_MAX;
        let request = hashes(start, start + HASHED_BYTES_MAX, 4096);
        asked.push(attacker.ask(&Request::Read(request)).await);
    }
    // While they are hashed.
    scene.is_well(before, 64 * MIB);
    drop(asked);
    attacker.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_takes_anything_in_loses_its_lease() {
    let home = Home::new();
    let served = home.folder("served");
    for number in 0..100 {
        fs::write(served.join(format!("file-{number}")), "old").unwrap();
    }
    let scene = Scene::new(&home);
    let before = scene.taken();
    let deaf = scene.deaf(&scene.key, hello()).await.unwrap();
    for number in 0..100 {
        let attacker = &deaf.attacker;
        let name = format!("file-{number}");
        assert!(attacker.look_up(&attacker.root(), &name).await.is_ok());
    }
    // The first waits for the lease, the others do not.
    let began = std::time::Instant::now();
    for number in 0..100 {
        let name = format!("file-{number}");
        fs::write(scene.mount.path(&name), "new").unwrap();
        assert_eq!(fs::read(scene.served(&name)).unwrap(), b"new");
    }
    let took = began.elapsed();
    let expired = deaf.attacker.connection.closed().await;
    let why = format!("{expired}");
    assert!(why.contains("lease"), "{why} after {took:?}");
    scene.is_well(before, 16 * MIB);
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_does_not_take_all_connections() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let dialer = scene.dialer(&scene.key);
    // Those that say nothing: some are kept for a while, the others told to come again.
    let mut silent = Vec::new();
    let is_busy = |connection: &quinn::Connection| match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => {
            close.error_code == CLOSE_BUSY.into()
        }
        _ => false,
    };
    while !silent.iter().any(is_busy) {
        silent.push(dialer.connect(PATIENCE).await.unwrap());
        assert!(silent.len() < 500);
    }
    assert!(silent.len() > 32);
    // Others are let in all the same, also with a new mount.
    Mount::start(&home, &scene.serve, "second").unmount();
    silent.clear();

    // Those that are let in.
    let mut sessions = Vec::new();
    let refused = loop {
        let connection = dialer.connect(PATIENCE).await.unwrap();
        match greet(connection, hello()).await {
            Ok(deaf) => sessions.push(deaf),
            Err(refusal) => break refusal,
        }
        assert!(sessions.len() <= 256);
    };
    assert_eq!((refused, sessions.len()), (Refusal::Full, 256));
    Mount::start(&home, &scene.serve, "third").unmount();
    scene.is_well(before, 128 * MIB);
    for deaf in sessions {
        deaf.attacker.leave().await;
    }
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_does_not_watch_everything() {
    let home = Home::new();
    for number in 0..60 {
        home.folder(&format!("served/part-{number}"));
    }
    let scene = Scene::new(&home);
    let before = scene.taken();
    let part = |number: usize| Hello {
        subtree: RelPath::new(format!("part-{number}")).unwrap(),
        ..hello()
    };
    let mut sessions = Vec::new();
    let refused = loop {
        match scene.hello(&scene.key, part(sessions.len())).await {
            Ok(session) => sessions.push(session),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!((refused, sessions.len()), (Refusal::Full, 48));
    // Another client of a part that it has goes on being let in, and others with a part of their own.
    sessions.push(scene.hello(&scene.key, part(0)).await.unwrap());
    let source = format!("{}part-59", scene.serve.source());
    let mount = Mount::with(&home, &source, "part", &[]);
    assert_eq!(fs::read_dir(mount.point()).unwrap().count(), 0);
    fs::write(scene.served("part-59/new"), "x").unwrap();
    wait_until("what is new is noticed", || mount.path("new").exists());
    mount.unmount();
    scene.is_well(before, 64 * MIB);
    for session in sessions {
        session.leave().await;
    }
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_again_and_again_leaves_nothing_behind() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let dialer = scene.dialer(&scene.key);
    let said = hello();
    let come = async || {
        let connection = dialer.connect(PATIENCE).await.unwrap();
        let deaf = greet(connection, said.clone()).await.unwrap();
        // Something for the server to hold: a request without an end.
        let (mut send, _receive) = deaf.attacker.connection.open_bi().await.unwrap();
        send.write_all(&(200u32 << 10).to_le_bytes()).await.unwrap();
        let _ = send.write_all(&[0xff; 100 << 10]).await;
        deaf.attacker.connection.close(0u32.into(), b"");
    };
    come().await;
    let before = scene.taken();
    for _ in 0..300 {
        come().await;
    }
    scene.is_well(before, 16 * MIB);
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_does_not_take_all_descriptors() {
    let home = Home::new();
    fs::write(home.folder("served").join("file"), "x").unwrap();
    // Fewer than usual, so that this ends soon.
    let scene = Scene::with_limit(&home, &Grant::default(), Some(2000));
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let attr = attacker.look_up(&attacker.root(), "file").await.unwrap();
    let file = at(attr.id, "file");
    let mut handles = Vec::new();
    let refused = loop {
        match attacker.open(&file, Access::Read).await {
            Ok(handle) => handles.push(handle),
            Err(errno) => break errno,
        }
    };
    assert_eq!(refused, Errno::MFILE.raw_os_error());
    assert!((500..1000).contains(&handles.len()), "{}", handles.len());
    // Nor with another session of its own; others open what they like.
    let second = scene.attacker().await;
    assert_eq!(second.open(&file, Access::Read).await, Err(refused));
    let open: Vec<_> = (0..200)
        .map(|n| File::create(scene.mount.path(&format!("honest-{n}"))).unwrap())
        .collect();
    drop(open);
    scene.is_well(before, 32 * MIB);
    attacker.leave().await;
    second.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_rubbish_are_bounded() {
    let home = Home::new();
    let path = home.folder("served").join("file");
    File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let attr = attacker.look_up(&attacker.root(), "file").await.unwrap();
    let handle = attacker
        .open(&at(attr.id, "file"), Access::Read)
        .await
        .unwrap();
    for round in 0..100u64 {
        let run = |n: u64| Pages {
            first: n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (round % 64),
            count: if n.is_multiple_of(3) {
                u64::MAX
            } else {
                1 + n % 2
            },
        };
        let runs = (round * 1000..(round + 1) * 1000).map(run).collect();
        // It is taken or refused, and never more than that.
        let _ = attacker.read(ReadRequest::Touched { handle, runs }).await;
    }
    match attacker.read(ReadRequest::Order { handle }).await {
        Ok(Answer::Order(runs)) => {
            let end = (1u64 << 40) / 4096;
            assert!(runs.iter().all(|run| run.first + run.count <= end));
        }
        other => panic!("{other:?}"),
    }
    scene.is_well(before, 32 * MIB);
    attacker.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_told_nothing_however_many() {
    let home = Home::new();
    let scene = Scene::new(&home);
    let before = scene.taken();
    for _ in 0..50 {
        let stranger = Identity::generate();
        let Ok(connection) = scene.dialer(&stranger).connect(PATIENCE).await else {
            continue;
        };
        // What is said at once counts for nothing.
        if let Ok((mut send, mut receive)) = connection.open_bi().await {
            let _ = stream::send(&mut send, &hello()).await;
            let answer = stream::receive::<HelloReply>(&mut receive).await;
            assert!(!matches!(answer, Ok(Some(_))), "{answer:?}");
        }
        connection.closed().await;
        assert!(stream::is_unauthorized(&connection));
    }
    scene.is_well(before, 16 * MIB);
    scene.gives_back(before);
}
