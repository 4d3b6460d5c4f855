//! A mount over ssh: the server that was started for it waits, and is started again when it is gone.

use crate::common::hands::Hands;
use crate::common::sshd::{Sshd, servers_of};
use crate::common::{Home, Mount, noise, run, signal, wait_until};
use crate::lab::{Lab, SERVER};
use crate::{MIB, hex, log, mount, wait_until_lost};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The user's ssh, as a script that notes with which options it was called.
struct Ssh {
    script: PathBuf,
    calls: PathBuf,
}

impl Ssh {
    /// Where this file is, it waits for ever instead of connecting, and writes its process number there.
    fn hang_file(home: &Home) -> PathBuf {
        home.path("hang")
    }

    fn new(home: &Home, sshd: &Sshd) -> Ssh {
        let ssh = Ssh {
            script: home.path("ssh"),
            calls: home.path("calls"),
        };
        let hang = Ssh::hang_file(home);
        let script = format!(
            "#!/bin/sh
case \" $* \" in *' -G '*) exec {command} \"$@\" ;; esac
echo \"$*\" >> {calls:?}
if [ -e {hang:?} ]; then echo $$ > {hang:?}; exec sleep 3600; fi
exec {command} \"$@\"
",
            command = sshd.command(),
            calls = ssh.calls,
        );
        fs::write(&ssh.calls, "").unwrap();
        fs::write(&ssh.script, script).unwrap();
        fs::set_permissions(&ssh.script, PermissionsExt::from_mode(0o700)).unwrap();
        ssh
    }

    /// How it was called so far.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(&self.calls).unwrap();
        calls.lines().map(str::to_owned).collect()
    }
}

/// An sshd on the serving machine, and a mount over it of a folder.
fn mount_over_ssh<'a>(
    (lab, home): (&Lab, &'a Home),
    served: &Path,
    options: &[&str],
) -> Option<(Sshd, Ssh, Mount<'a>)> {
    let sshd = lab.serving(|| Sshd::start_at(SERVER.parse().unwrap(), None))?;
    let ssh = Ssh::new(home, &sshd);
    let server = home.program().to_str().unwrap();
    let mut all = vec!["--ssh", ssh.script.to_str().unwrap(), "--server", server];
    all.extend(options);
    let source = format!("{SERVER}:{}", served.display());
    let mount = mount(lab, home, &source, &all);
    assert_eq!(servers_of(served).len(), 1);
    Some((sshd, ssh, mount))
}

/// The sshd lets nobody in while it lives. Programs that wait end with it: it is to be dropped before they are.
struct Locked {
    authorized: PathBuf,
    away: PathBuf,
}

impl Locked {
    fn new(sshd: &Sshd) -> Locked {
        let locked = Locked {
            authorized: sshd.dir.path().join("authorized"),
            away: sshd.dir.path().join("away"),
        };
        fs::rename(&locked.authorized, &locked.away).unwrap();
        locked
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = fs::rename(&self.away, &self.authorized);
    }
}

fn kill_server(served: &Path) {
    for pid in servers_of(served) {
        signal(pid, Signal::KILL);
    }
    wait_until("the server is gone", || servers_of(served).is_empty());
}

#[test]
fn a_one_shot_server_that_still_runs_is_found_again() {
    let test = "a_one_shot_server_that_still_runs_is_found_again";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    let large = noise(16 * MIB, 1);
    fs::write(served.join("large"), &large).unwrap();
    let Some((_sshd, ssh, mount)) = mount_over_ssh((&lab, &home), &served, &[]) else {
        return;
    };
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDWR)",
        mount.path("large")
    ));
    hands.make("len(os.pread(f, 4096, 0))");
    // Before the first store the kernel asks for something.
    hands.make("os.pwrite(f, os.pread(f, 1, 0), 0)");
    let server = servers_of(&served);
    let cut = lab.cut();
    hands.make("os.pwrite(f, b'meanwhile', 1000)");
    hands.begin("os.fsync(f) or os.pread(f, 4096, 8 << 20).hex()");
    wait_until_lost(&mount);
    cut.mend();
    assert!(hands.answer().unwrap() == hex(&large, 8 * MIB, 4096));
    let there = fs::read(served.join("large")).unwrap();
    assert_eq!(&there[1000..1009], b"meanwhile");
    assert_eq!(servers_of(&served), server);
    assert_eq!(ssh.calls().len(), 1, "{:?}", ssh.calls());
    drop(hands);
    mount.unmount();
    wait_until("the server has ended", || servers_of(&served).is_empty());
}

#[test]
fn a_one_shot_server_that_is_gone_is_started_again() {
    let test = "a_one_shot_server_that_is_gone_is_started_again";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    let (large, mut stored) = (noise(16 * MIB, 1), noise(MIB, 2));
    fs::write(served.join("large"), &large).unwrap();
    fs::write(served.join("stored"), &stored).unwrap();
    // What is stored stays dirty until it is synced.
    let options = ["--push-interval", "1h"];
    let Some((sshd, ssh, mount)) = mount_over_ssh((&lab, &home), &served, &options) else {
        return;
    };
    let (Some(mut reader), Some(mut writer)) = (Hands::new(test), Hands::new(test)) else {
        return;
    };
    reader.make(&format!(
        "f = os.open({:?}, os.O_RDONLY)",
        mount.path("large")
    ));
    reader.make("len(os.pread(f, 4096, 0))");
    writer.make(&format!(
        "f = os.open({:?}, os.O_RDWR)",
        mount.path("stored")
    ));
    writer.make("m = mmap.mmap(f, 0)");
    writer.make("os.pwrite(f, b'before', 5000)");
    writer.make("m[500_000:500_010] = b'by mapping'");
    let locked = Locked::new(&sshd);
    kill_server(&served);
    writer.make("os.pwrite(f, b'after', 900_000)");
    writer.begin("os.fsync(f)");
    reader.begin("os.pread(f, 100_000, 10 << 20).hex()");
    wait_until("ssh was tried twice", || ssh.calls().len() >= 3);
    wait_until("it is told why that fails", || {
        let said = log(&home);
        said.contains("not started again over ssh, next try in")
            && said.contains("ssh failed")
            && said.contains("Permission denied")
    });
    let status = mount.status();
    assert_ne!(status["link"], "up");
    let error = status["link_error"].as_str().unwrap();
    assert!(error.contains("Permission denied"), "{status}");

    drop(locked);
    assert!(reader.answer().unwrap() == hex(&large, 10 * MIB, 100_000));
    assert_eq!(writer.answer(), Ok("None".into()));
    for (place, bytes) in [
        (5000, &b"before"[..]),
        (500_000, b"by mapping"),
        (900_000, b"after"),
    ] {
        stored[place..][..bytes.len()].copy_from_slice(bytes);
    }
    assert!(fs::read(served.join("stored")).unwrap() == stored);
    assert!(fs::read(mount.path("large")).unwrap() == large);
    assert!(fs::read(mount.path("stored")).unwrap() == stored);
    let said = log(&home);
    assert!(said.contains("started again over ssh"), "{said}");
    assert!(said.contains("link is up again after"), "{said}");
    assert_eq!(servers_of(&served).len(), 1);
    let calls = ssh.calls();
    assert!(!calls[0].contains("BatchMode=yes"), "{calls:?}");
    // Nobody is asked for a password by one in the background.
    assert!(
        calls[1..].iter().all(|call| call.contains("BatchMode=yes")),
        "{calls:?}"
    );
    drop((reader, writer));
    mount.unmount();
    wait_until("the server has ended", || servers_of(&served).is_empty());
}

#[test]
fn umount_ends_an_ssh_that_hangs() {
    let test = "umount_ends_an_ssh_that_hangs";
    let Some(lab) = Lab::new(test) else { return };
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), "content").unwrap();
    let Some((_sshd, _ssh, mount)) = mount_over_ssh((&lab, &home), &served, &[]) else {
        return;
    };
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"content");
    let hang = Ssh::hang_file(&home);
    fs::write(&hang, "").unwrap();
    kill_server(&served);
    let mut pid = String::new();
    wait_until("ssh hangs", || {
        pid = fs::read_to_string(&hang).unwrap().trim().into();
        !pid.is_empty()
    });
    let process = PathBuf::from("/proc").join(&pid);
    let opened = fs::read_dir(process.join("fd")).unwrap().flatten();
    let opened: Vec<_> = opened
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .collect();
    // It holds neither the terminal nor the mount.
    assert!(
        opened
            .iter()
            .all(|path| !path.starts_with("/dev/pts") && !path.ends_with("fuse")),
        "{opened:?}"
    );
    let memfs = mount.pid();
    run(home.memfs(["umount"]).arg(mount.leave()));
    wait_until("both have ended", || {
        !process.exists() && !Path::new(&format!("/proc/{memfs}")).exists()
    });
}
