//! The life of a mount: how it begins, by `memfs mount` and by `mount(8)`, and how it ends, by `memfs umount`,
//! by signals, and by others. Whatever ends it, what is dirty is pushed, or named.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::hands::Hands;
use common::sshd::{MEMFS, Sshd};
use common::{
    Home, Mount, Serve, complaint, has, is_root, mounts_below, processes_of, run, signal, skip,
    wait_until,
};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Waits until a process has ended. A zombie has: whoever started it may never ask.
fn wait_for_end(pid: u32) {
    wait_until("the process of the mount has ended", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit(')').next().unwrap().starts_with(" Z")
    });
}

#[test]
fn a_directory_of_this_machine() {
    let home = Home::new();
    let data = home.folder("data");
    fs::write(data.join("file"), "content").unwrap();
    let mount = Mount::with(&home, data.to_str().unwrap(), "mnt", &[]);
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content");
    fs::write(mount.path("new"), "new").unwrap();
    mount.unmount();
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new");
}

#[test]
fn a_part_of_what_is_served() {
    let home = Home::new();
    let below = home.folder("served/a/b");
    fs::write(below.join("inner"), "inner").unwrap();
    symlink("../..", below.join("up")).unwrap();
    let serve = Serve::start(&home, home.path("served"));
    let mount = Mount::with(&home, &format!("{}a/b", serve.source()), "mnt", &[]);
    assert_eq!(fs::read_to_string(mount.path("inner")).unwrap(), "inner");
    // A link out of it leads to where it leads on this machine.
    assert_eq!(fs::read_link(mount.path("up")).unwrap(), Path::new("../.."));
}

#[test]
fn addresses_of_ipv6_stand_in_brackets() {
    let test = "addresses_of_ipv6_stand_in_brackets";
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return skip(test, "there is no IPv6 here");
    }
    let home = Home::new();
    let below = home.folder("served/below");
    fs::write(below.join("file"), "content").unwrap();
    let mount = |source: &str, options: &[&str]| {
        let mount = Mount::with(&home, source, "mnt", options);
        assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content");
        mount.unmount();
    };
    let serve = Serve::start_at(&home, home.path("served"), "[::1]:0", &[]);
    assert!(serve.source().starts_with("memfs://[::1]:"));
    mount(&format!("{}below", serve.source()), &[]);

    let Some(sshd) = Sshd::start_at(Ipv6Addr::LOCALHOST.into(), None) else {
        return;
    };
    let user = run(Command::new("id").arg("-un"));
    let (user, below, ssh) = (user.trim(), below.display(), sshd.command());
    for host in ["[::1]".to_owned(), format!("{user}@[::1]")] {
        let options = ["--ssh", &ssh, "--server", MEMFS];
        mount(&format!("{host}:{below}"), &options);
    }
}

/// Who is told to wait no longer for a mount leaves nothing behind that mounts later.
#[test]
fn a_mount_that_is_given_up_never_comes() {
    let home = Home::new();
    let point = home.folder("mnt");
    let gone = |signals: &[Signal], mut begin: Command, mut under_way: Box<dyn FnMut()>| {
        for by in signals {
            let mut mount = begin.stdin(Stdio::null()).spawn().unwrap();
            under_way();
            signal(mount.id(), *by);
            assert_eq!(mount.wait().unwrap().signal(), Some(by.as_raw()));
            wait_until("all that it has started is gone", || {
                processes_of(&home.path("")).is_empty()
            });
            assert!(mounts_below(&point).is_empty());
        }
    };
    let ends = [Signal::TERM, Signal::INT, Signal::HUP, Signal::KILL];
    // A server that never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let source = format!("memfs://{}/", silent.local_addr().unwrap());
    let asked = Box::new(move || {
        silent.set_nonblocking(true).unwrap();
        while silent.recv(&mut [0; 2000]).is_ok() {} // of the one before
        silent.set_nonblocking(false).unwrap();
        silent.recv(&mut [0; 2000]).unwrap();
    });
    let begin = Mount::command(&home, &source, &point, &["--accept-new"]);
    gone(&ends, begin, asked);
    // An ssh that never gets anywhere.
    let (ssh, begun) = (home.path("ssh"), home.path("begun"));
    fs::write(&ssh, "#!/bin/sh\n>\"${0%ssh}begun\"\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    let options = ["--ssh", ssh.to_str().unwrap()];
    let begin = Mount::command(&home, "host:folder", &point, &options);
    let asked = Box::new(move || {
        wait_until("ssh is run", || begun.exists());
        fs::remove_file(&begun).unwrap();
    });
    gone(&ends, begin, asked);
}

#[test]
fn only_a_mount_point_is_unmounted() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mount = Mount::start(&home, &serve, "mnt");
    fs::write(mount.path("file"), "content").unwrap();
    fs::create_dir(mount.path("folder")).unwrap();
    let place = format!("the mount at {}", mount.point().display());
    for options in [&["umount"][..], &["umount", "--force"]] {
        for name in ["file", "folder"] {
            let said = complaint(home.memfs(options).arg(mount.path(name)), 1);
            assert!(said.contains("is not a mount point"), "{said}");
            assert!(said.trim_end().ends_with(&place), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    assert_eq!(mounts_below(mount.point()), [mount.point()]);
    // By another name it is one.
    symlink(mount.point(), home.path("link")).unwrap();
    let point = mount.leave();
    run(home.memfs(["umount"]).arg(home.path("link")));
    assert!(mounts_below(&point).is_empty());
}

#[test]
fn the_foreground_says_what_happens() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let point = home.folder("mnt");
    let end = |end: &dyn Fn(u32)| {
        let options = ["--foreground", "-v"];
        let mut command = Mount::command(&home, &serve.source(), &point, &options);
        let command = command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait_until("it is mounted", || !mounts_below(&point).is_empty());
        fs::write(point.join("file"), "content").unwrap();
        assert!(child.try_wait().unwrap().is_none());
        end(child.id());
        let mut said = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success(), "{said}");
        assert!(said.contains("unmounted"), "{said}");
        assert!(mounts_below(&point).is_empty());
    };
    end(&|pid| signal(pid, Signal::INT));
    end(&|_| {
        run(home.memfs(["umount"]).arg(&point));
    });
}

#[test]
fn umount_says_what_it_cannot_push() {
    // Not this process: what it starts would close the file once more, and wait for the server in that.
    let Some(mut hands) = Hands::new("umount_says_what_it_cannot_push") else {
        return;
    };
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![b'.'; 100_000]).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--push-interval", "1h"]);
    let pid = mount.pid();
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
    hands.make("os.pwrite(f, b'x' * 4096, 8192)");
    assert_eq!(mount.region("file")["dirty_bytes"], 4096);
    serve.kill();
    let said = complaint(home.memfs(["umount"]).arg(mount.point()), 1);
    assert!(
        said.lines().last().unwrap().contains("stays mounted"),
        "{said}"
    );
    assert!(said.contains("not pushed: file: "), "{said}");
    assert_eq!(mounts_below(mount.point()), [mount.point()]);

    let point = mount.leave();
    let said = complaint(home.memfs(["umount", "--force"]).arg(&point), 1);
    assert!(said.contains("not pushed: file: "), "{said}");
    assert!(mounts_below(&point).is_empty());
    wait_for_end(pid);
}

#[test]
fn a_forced_umount_ends_a_busy_mount() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let pid = mount.pid();
    let held = File::create(mount.path("held")).unwrap();
    held.write_all_at(b"pushed before", 0).unwrap();
    let point = mount.leave();
    run(home.memfs(["umount", "--force"]).arg(&point));
    assert_eq!(fs::read(served.join("held")).unwrap(), b"pushed before");
    wait_for_end(pid);
    assert!(held.write_all_at(b"late", 0).is_err());
}

#[test]
fn signals_and_umount_of_others_push_the_rest() {
    let test = "signals_and_umount_of_others_push_the_rest";
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let end = |how: &str, end: &dyn Fn(&Path, u32)| {
        let Some(mut hands) = Hands::new(test) else {
            return;
        };
        let mount = Mount::with(&home, &serve.source(), "mnt", &["--push-interval", "1h"]);
        let pid = mount.pid();
        // Through a mapping, and closed: it is nowhere but in the kernel's pages.
        hands.make(&format!(
            "f = os.open({:?}, os.O_RDWR | os.O_CREAT)",
            mount.path(how)
        ));
        hands.make("os.ftruncate(f, 8192)");
        hands.make("m = mmap.mmap(f, 8192)");
        hands.make("os.close(f)");
        hands.make("m[5000:5003] = b'new'");
        hands.make("m.close()");
        end(&mount.leave(), pid);
        wait_for_end(pid);
        assert_eq!(
            fs::read(served.join(how)).unwrap()[5000..5003],
            *b"new",
            "{how}"
        );
        assert!(mounts_below(&home.path("mnt")).is_empty(), "{how}");
    };
    end("term", &|_, pid| signal(pid, Signal::TERM));
    end("int", &|_, pid| signal(pid, Signal::INT));
    if has(test, "fusermount3") {
        end("fusermount", &|point, _| {
            run(Command::new("fusermount3").arg("-u").arg(point));
        });
    }
    if is_root() {
        end("umount", &|point, _| {
            run(Command::new("umount").arg(point));
        });
    }
}

#[test]
fn a_dead_mount_is_taken_away() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mount = Mount::start(&home, &serve, "mnt");
    let pid = mount.pid();
    signal(pid, Signal::KILL);
    wait_for_end(pid);
    let point = mount.leave();
    let mut again = Mount::command(&home, &serve.source(), &point, &[]);
    let said = complaint(&mut again, 1);
    assert!(said.contains("process is gone"), "{said}");
    let said = complaint(home.memfs(["umount"]).arg(&point), 1);
    assert!(said.contains("--force"), "{said}");
    run(home.memfs(["umount", "--force"]).arg(&point));
    assert!(mounts_below(&point).is_empty());
    Mount::start(&home, &serve, "mnt").unmount();
}

#[test]
fn mount_memfs_is_called_as_mount_calls_it() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), "here").unwrap();
    let point = home.folder("mnt");
    let helpers = home.mount_helpers();
    // Next to nothing in the environment.
    let mount = |options: &str| {
        let mut command = Command::new(helpers.join("mount.memfs"));
        command.env_clear().env("PATH", "/bin:/usr/bin");
        command.args([&served, &point]).args(["-o", options]);
        command
    };
    let generic = "rw,ro,nosuid,nodev,_netdev,nofail,x-any=1,push_interval=2s,cache=memory";
    run(&mut mount(generic));
    assert_eq!(fs::read(point.join("file")).unwrap(), b"here");
    let refused = fs::write(point.join("file"), "x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    run(home.memfs(["umount"]).arg(&point));
    // The exit codes of mount(8).
    let said = complaint(&mut mount("bogus"), 1);
    assert!(said.contains("bogus"), "{said}");
    let said = complaint(&mut mount("remount,ro"), 32);
    assert!(said.contains("not a memfs mount"), "{said}");
    fs::remove_dir_all(&served).unwrap();
    let said = complaint(&mut mount("cache=memory"), 32);
    assert!(said.contains("served"), "{said}");
}

/// With `mount(8)` and fstab, where the user's keys are found without HOME: in a view of the file system where
/// `mount(8)` finds the helpers and passwd(5) says another home.
#[test]
fn mount_and_fstab() {
    let test = "mount_and_fstab";
    if !is_root() {
        return skip(test, "only root may call mount(8) on it");
    }
    if !has(test, "unshare") || !has(test, "mount") {
        return;
    }
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), "here\n").unwrap();
    let serve = Serve::start(&home, &served);
    // Found in the home's own place below ~, which no variable names.
    run(home
        .memfs([
            "mount",
            "--accept-new",
            "--cache",
            "memory",
            &serve.source(),
        ])
        .arg(home.folder("mnt")));
    run(home.memfs(["umount"]).arg(home.path("mnt")));
    let passwd = format!("root:x:0:0:root:{}:/bin/sh\n", home.path("home").display());
    fs::write(home.path("passwd"), passwd).unwrap();
    let (source, point) = (serve.source(), home.path("mnt"));
    let line = format!(
        "{source} {} memfs ro,_netdev,soft=30,cache=memory 0 0\n",
        point.display()
    );
    fs::write(home.path("fstab"), line).unwrap();
    let script = r#"
        mount --bind "$1" "$(readlink -f /sbin)"
        mount --bind passwd /etc/passwd
        unset HOME XDG_CONFIG_HOME XDG_CACHE_HOME XDG_RUNTIME_DIR XDG_STATE_HOME

        mount -t memfs -o cache=memory "$2" mnt
        echo written >mnt/new
        mount -o remount,ro mnt
        ! touch mnt/file 2>/dev/null
        grep " $PWD/mnt fuse.memfs ro,nosuid,nodev" /proc/mounts >/dev/null
        mount -o remount,rw mnt
        touch mnt/file
        umount mnt

        mount -T fstab "$PWD/mnt"
        cat mnt/file mnt/new
        ! touch mnt/file 2>/dev/null
        umount mnt

        ! mount -t memfs "$2"none mnt 2>said
        cat said"#;
    let mut view = Command::new("unshare");
    view.args(["--mount", "bash", "-euc", script, "bash"]);
    view.arg(home.mount_helpers()).arg(&source);
    let told = run(view.current_dir(home.path("")));
    let told: Vec<&str> = told.lines().collect();
    assert_eq!(told[..2], ["here", "written"]);
    assert!(
        told[2].starts_with("memfs: ") && told[2].contains("none"),
        "{told:?}"
    );
    wait_until("all that was mounted is gone", || {
        let here = home.path("mnt");
        processes_of(&here).is_empty()
    });
}
