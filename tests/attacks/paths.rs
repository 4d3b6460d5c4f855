//! Names, links and ranges that lead out of what is served, or of a file.

use crate::attacker::*;
use crate::common::Home;
use memfs::transport::stream;
use memfs::wire::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// More than this a server does not take for requests that are refused.
const MEMORY_MAX: u64 = 32 << 20;

/// The bytes of a message with this in the place of its `XX…`, which is as long.
fn with(message: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    let marked = vec![b'X'; bytes.len()];
    let windows = message.windows(marked.len());
    let at = windows.clone().position(|window| window == marked).unwrap();
    let mut message = message;
    message[at..at + bytes.len()].copy_from_slice(bytes);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none_end_the_connection() {
    let home = Home::new();
    fs::write(home.path("secret"), "outside").unwrap();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let names: [&[u8]; 6] = [b"..", b"/x", b"x/", b"\0x", b"x\0", b"a/../b"];
    for bytes in names {
        let marked = "X".repeat(bytes.len());
        // As a name, as a path, and as the part of the tree that is asked for.
        let attacker = scene.attacker().await;
        let lookup = ReadRequest::Lookup {
            dir: attacker.root(),
            name: name(&marked),
        };
        let node = at(attacker.welcome.root.id, &marked);
        let open = ReadRequest::Open {
            node,
            access: Access::Read,
        };
        for request in [lookup, open] {
            let attacker = scene.attacker().await;
            let message = codec::encode(&Request::Read(request)).unwrap();
            let (mut send, _receive) = attacker.connection.open_bi().await.unwrap();
            send.write_all(&with(message, bytes)).await.unwrap();
            closed(&attacker.connection).await;
        }
        let subtree = RelPath::new(marked).unwrap();
        let said = codec::encode(&Hello { subtree, ..hello() }).unwrap();
        let connection = scene.connect().await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&with(said, bytes)).await.unwrap();
        closed(&connection).await;
    }
    // Content of a link is only content: nobody follows it here.
    let attacker = scene.attacker().await;
    let make = |text: &str, to: &[u8]| ChangeRequest::Make {
        dir: attacker.root(),
        name: name(text),
        make: Make::Symlink(to.to_vec()),
        mode: 0o777,
        by: BY,
    };
    let invalid = Errno::INVAL.raw_os_error();
    for to in [&b""[..], b"a\0b"] {
        assert!(attacker.change(make("none", to)).await.is_err());
    }
    let Ok(Answer::Attr(link)) = attacker.change(make("out", b"../secret")).await else {
        panic!("no link");
    };
    let opened = attacker.open(&at(link.id, "out"), Access::Read).await;
    assert_eq!(opened, Err(invalid));
    scene.is_well(before, MEMORY_MAX);
}

/// A thread makes `served/swap` now a folder of the tree, now a link to one outside.
struct Swapping {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapping {
    fn between(one: std::path::PathBuf, other: std::path::PathBuf) -> Swapping {
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        Swapping {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has failed if the test has ended and removed its files
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_becomes_a_link_leads_nowhere() {
    let home = Home::new();
    let outside = home.folder("outside");
    fs::write(outside.join("file"), "outside").unwrap();
    let inside = home.folder("served/deep/swap");
    fs::write(inside.join("file"), "inside!").unwrap();
    let aside = home.path("served/deep/aside");
    symlink(&outside, &aside).unwrap();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let deep = attacker.look_up(&attacker.root(), "deep").await.unwrap();
    let swap = attacker
        .look_up(&at(deep.id, "deep"), "swap")
        .await
        .unwrap();
    let dir = at(swap.id, "deep/swap");
    let id = attacker.look_up(&dir, "file").await.unwrap().id;
    let file = at(id, "deep/swap/file");
    let meta = fs::metadata(outside.join("file")).unwrap();
    let secret = FileId {
        ino: meta.ino(),
        ..id
    };

    let swapping = Swapping::between(inside.clone(), aside);
    let (stale, absent) = (Errno::STALE.raw_os_error(), Errno::NOENT.raw_os_error());
    let (mut found, mut missed) = (0, 0);
    while found < 40 || missed < 40 {
        let guessed = at(secret, "deep/swap/file");
        assert_eq!(attacker.open(&guessed, Access::Read).await, Err(stale));
        match attacker.open(&file, Access::Write).await {
            Ok(handle) => {
                found += 1;
                assert_eq!(attacker.pull(handle, 0, 7).await.unwrap(), b"inside!");
                attacker.push(handle, 0, b"inside!").await.unwrap();
                attacker.read(ReadRequest::Close { handle }).await.unwrap();
            }
            Err(errno) => {
                missed += 1;
                assert_eq!(errno, stale);
            }
        }
        let create = ChangeRequest::Create {
            dir: dir.clone(),
            name: name("new"),
            mode: 0o600,
            exclusive: false,
            by: BY,
        };
        match attacker.change(create).await {
            Ok(Answer::Opened { handle, .. }) => {
                attacker.read(ReadRequest::Close { handle }).await.unwrap();
            }
            answer => assert_eq!(answer, Err(stale)),
        }
        for text in ["file", "new"] {
            match attacker.look_up(&dir, text).await {
                Ok(attr) => assert_ne!(attr.id.ino, secret.ino),
                Err(errno) => assert!(errno == stale || errno == absent, "{errno}"),
            }
        }
        let remove = ChangeRequest::Remove {
            dir: dir.clone(),
            name: name("new"),
            directory: false,
        };
        let removed = attacker.change(remove).await;
        assert!(
            [Ok(Answer::Done), Err(stale), Err(absent)].contains(&removed),
            "{removed:?}"
        );
    }
    drop(swapping);
    let names: Vec<_> = fs::read_dir(&outside).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"outside");
    scene.is_well(before, MEMORY_MAX);
    attacker.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_beyond_the_file_get_nothing() {
    let home = Home::new();
    fs::write(home.folder("served").join("file"), "content").unwrap();
    let scene = Scene::new(&home);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    let attr = attacker.look_up(&attacker.root(), "file").await.unwrap();
    let file = at(attr.id, "file");
    let handle = attacker.open(&file, Access::Write).await.unwrap();
    let far = u64::MAX - TRANSFER_BYTES_MAX;
    for (start, end) in [(7, 8), (1 << 40, (1 << 40) + 1), (far, u64::MAX)] {
        let got = attacker.pull(handle, start, end).await;
        assert!(got.is_err() || got == Ok(Vec::new()), "{start}: {got:?}");
    }
    let invalid = Errno::INVAL.raw_os_error();
    for (start, end) in [
        (0, TRANSFER_BYTES_MAX + 1),
        (0, u64::MAX),
        (8, 7),
        (u64::MAX, 0),
    ] {
        let got = attacker.pull(handle, start, end).await;
        assert_eq!(got, Err(invalid), "{start}..{end}");
    }
    let extent = |start, end| Extent { start, end };
    for extents in [
        vec![],
        vec![extent(8, 7)],
        vec![extent(0, u64::MAX)],
        vec![extent(u64::MAX - 1, u64::MAX)],
        vec![extent(0, 2), extent(1, 3)],
        vec![extent(0, 2), extent(2, 3)],
        (0..=PUSH_EXTENTS_MAX as u64)
            .map(|n| extent(2 * n, 2 * n + 1))
            .collect(),
    ] {
        let (mut send, mut receive) = attacker.ask(&push(handle, extents)).await;
        let _ = send.finish();
        let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
        assert!(reply.result.is_err());
    }
    for (offset, data) in [(8, true), (u64::MAX, true), (u64::MAX, false)] {
        let request = ReadRequest::Seek {
            handle,
            offset,
            data,
        };
        assert_eq!(
            attacker.read(request).await,
            Err(Errno::NXIO.raw_os_error())
        );
    }
    let allocate = |start, end| ChangeRequest::Allocate {
        handle,
        start,
        end,
        mode: Allocate::Extend,
    };
    for (start, end) in [(0, 0), (1, 0), (0, u64::MAX), (u64::MAX - 1, u64::MAX)] {
        assert!(attacker.change(allocate(start, end)).await.is_err());
    }
    let open = ReadRequest::OpenAndPull {
        node: file.clone(),
        access: Access::Read,
        end: u64::MAX,
        compress: true,
    };
    let (mut send, mut receive) = attacker.ask(&Request::Read(open)).await;
    send.finish().unwrap();
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert!(reply.result.is_ok(), "it is opened");
    let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
    assert_eq!(reply.result, Err(invalid));
    assert_eq!(fs::read(scene.served("file")).unwrap(), b"content");
    scene.is_well(before, MEMORY_MAX);
    attacker.leave().await;
    scene.gives_back(before);
}
