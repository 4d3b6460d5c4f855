//! What a key is let in for: a part, reading only, nothing.

use crate::attacker::*;
use crate::common::{Home, Mount, Serve, complaint, run};
use memfs::transport::Grant;
use memfs::wire::*;
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

/// A request for each kind of change, to be made to `file` in `dir` (with a second name, a directory and an
/// attribute in it), and to what is open as `handle`.
fn changes(dir: &Node, file: &Node, handle: HandleId) -> Vec<ChangeRequest> {
    let set = |set: SetAttr| ChangeRequest::SetAttr {
        node: file.clone(),
        handle: None,
        set,
        by: BY,
    };
    let none = SetAttr::default();
    let time = |secs| Some(SetTime::At(Time { secs, nanos: 0 }));
    let mut all: Vec<_> = [
        SetAttr {
            mode: Some(0o777),
            ..none
        },
        SetAttr {
            uid: Some(1),
            ..none
        },
        SetAttr {
            gid: Some(1),
            ..none
        },
        SetAttr {
            size: Some(0),
            ..none
        },
        SetAttr {
            atime: time(1),
            ..none
        },
        SetAttr {
            mtime: Some(SetTime::Now),
            ..none
        },
    ]
    .map(set)
    .into();
    all.extend(changes_of_names(dir, file));
    let allocate = |mode| ChangeRequest::Allocate {
        handle,
        start: 0,
        end: 4096,
        mode,
    };
    let xattr = |mode| ChangeRequest::SetXattr {
        node: file.clone(),
        name: b"user.x".to_vec(),
        value: b"y".to_vec(),
        mode,
    };
    all.extend([
        xattr(XattrMode::Set),
        xattr(XattrMode::Create),
        xattr(XattrMode::Replace),
        ChangeRequest::RemoveXattr {
            node: file.clone(),
            name: b"user.x".to_vec(),
        },
        allocate(Allocate::Extend),
        allocate(Allocate::KeepSize),
        allocate(Allocate::PunchHole),
        allocate(Allocate::ZeroExtend),
        allocate(Allocate::ZeroKeepSize),
        ChangeRequest::Sync {
            handle,
            data_only: false,
        },
        ChangeRequest::SyncDir { dir: dir.clone() },
    ]);
    all
}

fn changes_of_names(dir: &Node, file: &Node) -> Vec<ChangeRequest> {
    let make = |text: &str, make| ChangeRequest::Make {
        dir: dir.clone(),
        name: name(text),
        make,
        mode: 0o777,
        by: BY,
    };
    let remove = |text: &str, directory| ChangeRequest::Remove {
        dir: dir.clone(),
        name: name(text),
        directory,
    };
    let rename = |to: &str, mode| ChangeRequest::Rename {
        from_dir: dir.clone(),
        from: name("file"),
        to_dir: dir.clone(),
        to: name(to),
        mode,
    };
    vec![
        make("new", Make::File),
        make("new", Make::Directory),
        make("new", Make::Symlink(b"/".to_vec())),
        make("new", Make::Fifo),
        make("new", Make::Socket),
        make("new", Make::CharDevice(0x103)),
        make("new", Make::BlockDevice(0x800)),
        ChangeRequest::Create {
            dir: dir.clone(),
            name: name("file"),
            mode: 0o777,
            exclusive: false,
            by: BY,
        },
        ChangeRequest::Create {
            dir: dir.clone(),
            name: name("new"),
            mode: 0o777,
            exclusive: true,
            by: BY,
        },
        ChangeRequest::Link {
            node: file.clone(),
            dir: dir.clone(),
            name: name("new"),
        },
        remove("file", false),
        remove("folder", true),
        rename("new", RenameMode::Replace),
        rename("new", RenameMode::NoReplace),
        rename("folder", RenameMode::Exchange),
    ]
}

/// A tree as `find` tells it, with everything that could have been changed.
fn picture(scene: &Scene) -> String {
    let format = "%P %y %m %U %G %n %s %T@ %C@ %l\\n";
    let mut find = Command::new("find");
    run(find.arg(scene.served("")).args(["-printf", format]))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_changes_nothing() {
    let home = Home::new();
    let part = home.folder("served/part");
    fs::create_dir(part.join("folder")).unwrap();
    fs::write(part.join("file"), "content").unwrap();
    let grant = Grant {
        read_only: true,
        subtree: RelPath::root(),
    };
    let scene = Scene::granting(&home, &grant);
    let before = scene.taken();
    let attacker = scene.attacker().await;
    assert!(attacker.welcome.read_only);
    let id = attacker.look_up(&attacker.root(), "part").await.unwrap().id;
    let dir = at(id, "part");
    let id = attacker.look_up(&dir, "file").await.unwrap().id;
    let file = at(id, "part/file");
    let handle = attacker.open(&file, Access::Read).await.unwrap();
    assert_eq!(attacker.pull(handle, 0, 100).await.unwrap(), b"content");

    let picture_before = picture(&scene);
    let refused = Errno::ROFS.raw_os_error();
    assert_eq!(attacker.open(&file, Access::Write).await, Err(refused));
    for change in changes(&dir, &file, handle) {
        let said = format!("{change:?}");
        assert_eq!(attacker.change(change).await, Err(refused), "{said}");
    }
    assert_eq!(attacker.push(handle, 0, b"x").await, Err(refused));
    assert_eq!(picture(&scene), picture_before);
    scene.is_well(before, 16 << 20);
    attacker.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sees_a_part_reaches_nothing_else() {
    let home = Home::new();
    let part = home.folder("served/part");
    fs::create_dir(part.join("folder")).unwrap();
    fs::write(part.join("file"), "inside").unwrap();
    fs::write(home.folder("served").join("secret"), "outside").unwrap();
    symlink("../secret", part.join("link")).unwrap();
    symlink("..", part.join("up")).unwrap();
    let subtree = RelPath::new("part").unwrap();
    let grant = Grant {
        read_only: false,
        subtree,
    };
    let scene = Scene::granting(&home, &grant);
    let before = scene.taken();
    // What the honest user of the same server knows of the file outside, and has open.
    let friend = scene.hello(&scene.own_key(), hello()).await.unwrap();
    let secret = friend.look_up(&friend.root(), "secret").await.unwrap();
    let open = friend.open(&at(secret.id, "secret"), Access::Write).await;
    let open = open.unwrap();

    let attacker = scene.attacker().await;
    assert_eq!(
        attacker.welcome.root.id.ino,
        fs::metadata(&part).unwrap().ino()
    );
    let (stale, bad) = (Errno::STALE.raw_os_error(), Errno::BADF.raw_os_error());
    let whole = friend.welcome.root.id;
    for path in ["secret", "file", "link", "up/secret", "part/secret", ""] {
        let node = at(secret.id, path);
        let said = attacker.open(&node, Access::Read).await;
        assert_eq!(said, Err(stale), "{path}");
        let dir = at(whole, path);
        assert_eq!(attacker.look_up(&dir, "secret").await, Err(stale), "{path}");
        for change in changes(&dir, &node, open) {
            let said = format!("{path}: {change:?}");
            let answer = attacker.change(change).await;
            assert!(
                answer == Err(stale) || answer == Err(bad),
                "{said}: {answer:?}"
            );
        }
        let read = [
            ReadRequest::GetAttr {
                node: node.clone(),
                handle: None,
            },
            ReadRequest::GetAttr {
                node: node.clone(),
                handle: Some(open),
            },
            ReadRequest::ReadLink { node: node.clone() },
            ReadRequest::ReadDir {
                dir,
                cursor: 0,
                xattrs: true,
            },
            ReadRequest::GetXattr {
                node: node.clone(),
                name: b"user.x".to_vec(),
            },
            ReadRequest::ListXattr { node: node.clone() },
            ReadRequest::Only {
                node,
                after: memfs::region::Tick(u64::MAX),
                by: memfs::region::ClientId([0; 16]),
            },
            ReadRequest::Order { handle: open },
            ReadRequest::Seek {
                handle: open,
                offset: 0,
                data: true,
            },
        ];
        for request in read {
            let said = format!("{path}: {request:?}");
            let answer = attacker.read(request).await;
            assert!(
                answer == Err(stale) || answer == Err(bad),
                "{said}: {answer:?}"
            );
        }
    }
    assert_eq!(attacker.pull(open, 0, 7).await, Err(bad));
    assert_eq!(attacker.push(open, 0, b"x").await, Err(bad));
    assert_eq!(fs::read(scene.served("secret")).unwrap(), b"outside");
    scene.is_well(before, 16 << 20);
    friend.leave().await;
    attacker.leave().await;
    scene.gives_back(before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_is_let_in_for_holds_from_the_next_connection_on() {
    let home = Home::new();
    let part = home.folder("served/part");
    fs::write(part.join("file"), "inside").unwrap();
    let scene = Scene::new(&home);
    let authorized = home.path("home/.config/memfs/authorized_keys");
    let key = scene.key.public();
    let hello = hello();
    let first = scene.hello(&scene.key, hello.clone()).await.unwrap();
    let (handle, _) = first.create("mine").await.unwrap();

    // The session goes on, and the handle with it; what it may be used for is another matter now.
    fs::write(&authorized, format!("read-only {key}\n")).unwrap();
    let second = scene.hello(&scene.key, hello.clone()).await.unwrap();
    assert!(second.welcome.resumed && second.welcome.read_only);
    let refused = Errno::ROFS.raw_os_error();
    assert_eq!(second.push(handle, 0, b"x").await, Err(refused));

    // Nor does one of the whole tree become one of a part.
    fs::write(&authorized, format!("subtree=\"part\" {key}\n")).unwrap();
    let third = scene.hello(&scene.key, hello).await;
    let other = Refusal::Subtree(Errno::INVAL.raw_os_error());
    assert_eq!(third.err(), Some(other));
    let fourth = scene.attacker().await;
    assert!(fourth.look_up(&fourth.root(), "file").await.is_ok());
    let missing = Errno::NOENT.raw_os_error();
    assert_eq!(fourth.look_up(&fourth.root(), "mine").await, Err(missing));
    for path in ["part", "../part"] {
        let Some(subtree) = RelPath::new(path) else {
            continue;
        };
        let asked = Hello {
            subtree,
            ..crate::attacker::hello()
        };
        let answer = scene.hello(&scene.key, asked).await;
        assert_eq!(answer.err(), Some(Refusal::Subtree(missing)));
    }

    // A line that is wrong, and no line, let nobody in.
    for text in [format!("subtree=part,x {key}\n"), String::new()] {
        fs::write(&authorized, text).unwrap();
        if let Ok(connection) = scene.dialer(&scene.key).connect(PATIENCE).await {
            connection.closed().await;
            assert!(memfs::transport::stream::is_unauthorized(&connection));
        }
    }
    let said = home.logs();
    let place = format!(
        "{}:1: no option 'x': allowed are read-only",
        authorized.display()
    );
    assert!(said.contains(&place), "{said}");
    scene.honest();
}

/// By the commands that people use, on a real mount.
#[test]
fn a_friend_mounts_what_was_granted() {
    let home = Home::new();
    let below = home.folder("served/of 2024/below");
    fs::write(below.join("file"), "shown").unwrap();
    fs::write(home.folder("served").join("secret"), "not shown").unwrap();
    let serve = Serve::start(&home, home.path("served"));
    let theirs = Home::new();
    let key = run(&mut theirs.memfs(["key"]));
    let options = [
        "key",
        "authorize",
        "--read-only",
        "--subtree",
        "of 2024",
        key.trim(),
    ];
    run(&mut home.memfs(options));

    let trust = ["--server-key", &serve.key];
    let mount = Mount::with(&theirs, &serve.source(), "whole", &trust);
    let listed = fs::read_dir(mount.point()).unwrap().flatten();
    let names: Vec<_> = listed.map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["below"]);
    assert_eq!(fs::read(mount.path("below/file")).unwrap(), b"shown");
    for written in [mount.path("below/file"), mount.path("new")] {
        let error = fs::write(written, "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    mount.unmount();
    // A source may name a part of that part, and never one beside it.
    let mount = Mount::with(&theirs, &format!("{}below", serve.source()), "part", &trust);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"shown");
    mount.unmount();
    for outside in ["secret", "of 2024", "../served"] {
        let source = format!("{}{outside}", serve.source());
        let point = theirs.folder("none");
        let code = if outside.contains("..") { 2 } else { 1 };
        complaint(&mut Mount::command(&theirs, &source, &point, &trust), code);
    }
    assert_eq!(fs::read(below.join("file")).unwrap(), b"shown");
}

#[test]
fn what_memfs_keeps_is_nobody_elses() {
    let home = Home::new();
    let scene = Scene::new(&home);
    fs::write(scene.mount.path("file"), "cached").unwrap();
    drop(scene);
    let kept = [
        "home/.config/memfs",
        "home/.cache",
        "home/.local/state/memfs",
        "run",
        "cache-of-mnt",
    ];
    let mut seen = 0;
    for top in kept.map(|top| home.path(top)) {
        let Ok(meta) = fs::symlink_metadata(&top) else {
            continue;
        };
        seen += 1;
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{}", top.display());
    }
    assert!(seen >= 3, "{seen}");
    for file in ["identity", "authorized_keys", "known_hosts"] {
        let path = home.path("home/.config/memfs").join(file);
        if let Ok(meta) = fs::metadata(&path) {
            assert_eq!(meta.mode() & 0o7777, 0o600, "{file}");
        }
    }
    // One that others can read is refused, as ssh does.
    let identity = home.path("home/.config/memfs/identity");
    for mode in [0o604, 0o640, 0o660] {
        fs::set_permissions(&identity, fs::Permissions::from_mode(mode)).unwrap();
        let said = complaint(&mut home.memfs(["serve", "mem://?size=1M"]), 1);
        assert!(said.contains("chmod 600"), "{said}");
    }
}
