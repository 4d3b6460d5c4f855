//! The far side started over a real sshd on loopback, with keys and a configuration of its own.
#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

mod common;

use common::sshd::{MEMFS, Sshd, free_port, servers_of};
use memfs::node::replica::{ROOT, Replica, ReplicaOptions};
use memfs::transport::ssh::{self, SshTarget, Started};
use memfs::transport::{Dialer, Identity, ServerTrust};
use memfs::wire::Name;
use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn dialer(started: &Started, identity: Identity) -> Dialer {
    let trust = ServerTrust::Key(started.server);
    Dialer::new(&started.hosts[0], started.port, identity, trust).unwrap()
}

#[tokio::test]
async fn a_directory_is_served_to_who_started_it_and_nobody_else() {
    let Some(sshd) = Sshd::start(None) else {
        return;
    };
    let export = sshd.export();
    let started = ssh::start(&sshd.target(export.to_str().unwrap())).unwrap();
    // The name ssh resolves and the address it came to are the same here.
    assert_eq!(started.hosts, ["127.0.0.1"]);
    assert_eq!(servers_of(&export).len(), 1);

    let stranger = dialer(&started, Identity::generate());
    if let Ok(connection) = stranger.connect(PATIENCE).await {
        connection.closed().await;
        assert!(memfs::transport::stream::is_unauthorized(&connection));
    }

    let dialer = dialer(&started, started.identity.clone());
    let replica = Replica::connect(dialer, ReplicaOptions::default())
        .await
        .unwrap();
    let entry = replica
        .lookup(ROOT, &Name::new("file").unwrap())
        .await
        .unwrap();
    assert_eq!(entry.attr.size, 7);
    assert!(!replica.is_read_only());

    let left = replica.shut_down(PATIENCE).await;
    assert!(left.is_empty());
    while !servers_of(&export).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_shot_server_keeps_what_was_touched_for_the_next() {
    const PAGE: u64 = 4096;
    let Some(sshd) = Sshd::start(None) else {
        return;
    };
    let export = sshd.export();
    fs::write(export.join("large"), vec![7; 8 << 20]).unwrap();
    // From the end to the beginning: nothing of it would come by itself.
    let places: Vec<u64> = (0..100).map(|i| 2047 - 19 * i).collect();
    for first in [true, false] {
        let started = ssh::start(&sshd.target(export.to_str().unwrap())).unwrap();
        let dialer = dialer(&started, started.identity.clone());
        let options = ReplicaOptions {
            background: !first,
            ..ReplicaOptions::default()
        };
        let replica = Replica::connect(dialer, options).await.unwrap();
        let large = Name::new("large").unwrap();
        let node = replica.lookup(ROOT, &large).await.unwrap().node;
        let (handle, _) = replica.open(node, true, false).await.unwrap();
        let touched = if first { &places[..] } else { &places[..1] };
        for page in touched {
            let read = replica.read(handle, page * PAGE, 4096, <[u8]>::len).await;
            assert_eq!(read.unwrap(), 4096);
        }
        for page in &places {
            while replica.try_read(handle, page * PAGE, 1, |_| ()).is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        replica.close(handle);
        assert!(replica.shut_down(PATIENCE).await.is_empty());
        while !servers_of(&export).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let orders = sshd.dir.path().join("state/memfs/order");
    assert_eq!(fs::read_dir(orders).unwrap().count(), 1);
}

#[tokio::test]
async fn a_noisy_login_does_no_harm() {
    let noise =
        r#"echo hello; echo memfs: no; printf 'no newline'; echo; sh -c "$SSH_ORIGINAL_COMMAND""#;
    let Some(sshd) = Sshd::start(Some(noise)) else {
        return;
    };
    let export = sshd.export();
    let mut target = sshd.target(export.to_str().unwrap());
    target.read_only = true;
    let started = ssh::start(&target).unwrap();
    let dialer = dialer(&started, started.identity.clone());
    let replica = Replica::connect(dialer, ReplicaOptions::default())
        .await
        .unwrap();
    assert!(replica.is_read_only());
    replica.shut_down(PATIENCE).await;
    while !servers_of(&export).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_directory_is_mounted_over_ssh() {
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_err()
    {
        eprintln!("SKIPPED: /dev/fuse cannot be opened");
        return;
    }
    let Some(sshd) = Sshd::start(None) else {
        return;
    };
    let export = sshd.export();
    let point = sshd.dir.path().join("mount");
    fs::create_dir(&point).unwrap();
    let memfs = |args: &[&OsStr]| Command::new(MEMFS).args(args).status().unwrap();
    let source = format!("127.0.0.1:{}", export.display());
    let ssh = sshd.command();
    let mounted = memfs(&[
        "mount".as_ref(),
        "--ssh".as_ref(),
        ssh.as_ref(),
        "--server".as_ref(),
        MEMFS.as_ref(),
        source.as_ref(),
        point.as_ref(),
    ]);
    assert!(mounted.success());
    let read = fs::read_to_string(point.join("file"));
    let written = fs::write(point.join("new"), "from here");
    let unmounted = memfs(&["umount".as_ref(), point.as_ref()]);
    assert!(unmounted.success());
    written.unwrap();
    assert_eq!(read.unwrap(), "content");
    assert_eq!(fs::read_to_string(export.join("new")).unwrap(), "from here");
    // The one-shot server ends with its mount.
    while !servers_of(&export).is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_goes_wrong_is_told() {
    let Some(sshd) = Sshd::start(None) else {
        return;
    };
    let export = sshd.export();
    let export = export.to_str().unwrap();
    let complaint = |target: &SshTarget| ssh::start(target).err().unwrap();

    let mut target = sshd.target(export);
    target.server = "/nowhere/memfs".into();
    let said = complaint(&target);
    assert_eq!(
        said,
        "/nowhere/memfs was not found on 127.0.0.1; install it there or give --server PATH"
    );
    target.server = export.into();
    assert!(complaint(&target).contains("cannot be run"));
    target.server = "true".into();
    assert!(complaint(&target).contains("without a word"));

    let said = complaint(&sshd.target("/nowhere/at/all"));
    assert!(said.contains("failed with status 1"), "{said}");

    let mut target = sshd.target(export);
    target.ssh.extend(["-p".into(), free_port().to_string()]);
    // ssh takes the first port it is given.
    target.ssh.drain(3..5);
    let said = complaint(&target);
    assert!(said.contains("127.0.0.1: ssh failed"), "{said}");

    target.ssh = vec!["/nowhere/ssh".into()];
    assert!(complaint(&target).starts_with("/nowhere/ssh: "));
    for bad in ["", "-oProxyCommand=touch /tmp/x"] {
        target.destination = bad.into();
        assert!(complaint(&target).contains("not a host"));
    }
}
