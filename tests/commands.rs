//! The commands as a person or mount(8) uses them: status, pull, flush, forget, mount of a store of this
//! machine, mount.memfs, SIGTERM, manual pages and completions.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, bash, complaint, mounts_below, noise, output, run, signal};
use common::{is_root, skip, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// What status tells of one file.
#[track_caller]
fn region(mount: &Mount, path: &str) -> Value {
    let status = mount.status();
    let regions = status["regions"].as_array().unwrap();
    let found = regions.iter().find(|region| region["path"] == path);
    found
        .unwrap_or_else(|| panic!("no {path} in {status}"))
        .clone()
}

#[test]
fn pull_flush_and_forget() {
    let home = Home::new();
    let served = home.folder("served");
    fs::create_dir(served.join("dir")).unwrap();
    for name in ["dir/a", "dir/b"] {
        fs::write(served.join(name), noise(5 << 20, 1)).unwrap();
    }
    let serve = Serve::start(&home, &served);
    let options = ["--pull", "demand", "--push-interval", "1h"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let Some(mut hands) = Hands::new("pull_flush_and_forget") else {
        return;
    };
    let whole = 5 << 20;
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDWR)",
        mount.path("dir/a")
    ));
    hands.make("m = mmap.mmap(f, 0)");
    hands.make("m[0]");
    let before = region(&mount, "dir/a");
    assert_eq!(
        (&before["size"], &before["opens"]),
        (&whole.into(), &1.into())
    );
    assert!(
        before["present_bytes"].as_u64().unwrap() < whole,
        "{before}"
    );

    run(home.memfs(["pull", "--wait"]).arg(mount.path("dir")));
    assert_eq!(region(&mount, "dir/a")["present_bytes"], whole);
    assert_eq!(region(&mount, "dir/b")["present_bytes"], whole);

    // Neither by itself within the hour, nor by closing, but by being asked.
    hands.make("m[4321] = 99");
    let there = || fs::read(served.join("dir/a")).unwrap()[4321];
    let old = there();
    assert_eq!(old, noise(5 << 20, 1)[4321]);
    run(home.memfs(["flush"]).arg(mount.path("dir/a")));
    assert_eq!(there(), 99);

    run(home.memfs(["forget"]).arg(mount.path("dir/b")));
    assert_eq!(region(&mount, "dir/b")["present_bytes"], 0);
    let pulled = || mount.status()["pulled_bytes"].as_u64().unwrap();
    let before = pulled();
    assert!(fs::read(mount.path("dir/b")).unwrap() == noise(5 << 20, 1));
    assert!(pulled() >= before + whole);

    let said = complaint(home.memfs(["pull"]).arg(&served), 1);
    assert!(
        said.contains("served") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn status_tells_of_all_mounts() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mounts = ["a", "b"].map(|name| Mount::start(&home, &serve, name));
    let all: Value = serde_json::from_str(&run(&mut home.memfs(["status", "--json"]))).unwrap();
    for mount in &mounts {
        let is_it = |told: &&Value| told["mountpoint"] == mount.point().to_str().unwrap();
        let told = all.as_array().unwrap().iter().find(is_it);
        let told = told.unwrap_or_else(|| panic!("{all}"));
        assert_eq!(told["server"], serve.address);
        assert_eq!(told["link"], "up");
        let text = run(home.memfs(["status"]).arg(mount.point()));
        assert!(
            text.contains(&serve.address) && text.contains("up"),
            "{text}"
        );
    }
    let said = complaint(home.memfs(["status"]).arg(home.path("logs")), 1);
    assert!(said.contains("logs"), "{said}");
}

#[test]
fn a_store_of_this_machine() {
    let home = Home::new();
    let data = home.folder("data");
    fs::write(data.join("file"), "content").unwrap();
    let mount = Mount::with(&home, data.to_str().unwrap(), "mnt", &[]);
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content");
    fs::write(mount.path("new"), "new").unwrap();
    mount.unmount();
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new");
    let mount = Mount::with(&home, "mem://?size=1M", "mnt", &[]);
    fs::write(mount.path("file"), "in memory").unwrap();
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "in memory");
    mount.unmount();
}

#[test]
fn a_part_of_what_is_served() {
    let home = Home::new();
    let served = home.folder("served");
    fs::create_dir_all(served.join("a/b")).unwrap();
    fs::write(served.join("a/b/inner"), "inner").unwrap();
    std::os::unix::fs::symlink("../..", served.join("a/b/up")).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &format!("{}a/b", serve.source()), "mnt", &[]);
    assert_eq!(fs::read_to_string(mount.path("inner")).unwrap(), "inner");
    // A link out of it leads to where it leads on this machine.
    assert_eq!(
        fs::read_link(mount.path("up")).unwrap().to_str(),
        Some("../..")
    );
    let sneaky = format!("{}a/../a", serve.source());
    let point = home.folder("other");
    let said = complaint(&mut Mount::command(&home, &sneaky, &point, &[]), 2);
    assert!(said.contains(".."), "{said}");
}

#[test]
fn sigterm_unmounts() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let options = ["--push-interval", "1h"];
    let mount = Mount::with(&home, &serve.source(), "mnt", &options);
    let Some(mut hands) = Hands::new("sigterm_unmounts") else {
        return;
    };
    hands.make(&format!(
        "f = os.open({:?}, os.O_RDWR|os.O_CREAT)",
        mount.path("file")
    ));
    hands.make("os.ftruncate(f, 8192)");
    hands.make("m = mmap.mmap(f, 0)");
    hands.make("m[5000] = 77");
    hands.make("(m.close(), os.close(f))");
    let pid = mount.pid();
    let point = mount.leave();
    signal(pid, Signal::TERM);
    wait_until("it is unmounted", || mounts_below(&point).is_empty());
    assert_eq!(fs::read(served.join("file")).unwrap()[5000], 77);
}

#[test]
fn in_the_foreground() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let point = home.folder("mnt");
    let mut command = Mount::command(&home, &serve.source(), &point, &["--foreground"]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    wait_until("it is mounted", || !mounts_below(&point).is_empty());
    fs::write(point.join("file"), "content").unwrap();
    assert!(child.try_wait().unwrap().is_none());
    run(home.memfs(["umount"]).arg(&point));
    assert!(child.wait().unwrap().success());
    assert!(mounts_below(&point).is_empty());
}

#[test]
fn as_mount_helper() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), "content").unwrap();
    let serve = Serve::start(&home, &served);
    let point = home.folder("mnt");
    let helper = home.path("mount.memfs");
    std::os::unix::fs::symlink(home.program(), &helper).unwrap();
    // As mount(8) calls it: source, mount point, options.
    let memfs = home.memfs([""; 0]);
    let mut mount = Command::new(&helper);
    mount.envs(
        memfs
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let cache = home.path("cache");
    let options = format!("ro,nosuid,_netdev,soft=30,cache={}", cache.display());
    mount.arg(serve.source()).arg(&point).args(["-o", &options]);
    let mounted = output(&mut mount);
    assert!(mounted.status.success(), "{mounted:?}");
    assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "content");
    let refused = fs::write(point.join("new"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(30)); // EROFS
    run(home.memfs(["umount"]).arg(&point));
    // And the exit code of mount(8) for a mount that failed.
    let mut wrong = Command::new(&helper);
    wrong.arg("memfs://127.0.0.1:1/").arg(home.path("nowhere"));
    assert_eq!(output(&mut wrong).status.code(), Some(32));
}

#[test]
fn umount_of_the_system() {
    if !is_root() {
        return skip("umount_of_the_system", "only root may call umount(8) on it");
    }
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    fs::write(mount.path("file"), "content").unwrap();
    let pid = mount.pid();
    run(Command::new("umount").arg(mount.leave()));
    wait_until("its process has ended", || {
        !fs::exists(format!("/proc/{pid}")).unwrap()
    });
    assert_eq!(fs::read_to_string(served.join("file")).unwrap(), "content");
}

#[test]
fn status_again_and_again() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mount = Mount::start(&home, &serve, "mnt");
    let mut watch = home.memfs(["status", "--json", "--watch"]);
    let mut child = watch
        .arg(mount.point())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.take(2) {
        let told: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(told["link"], "up");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn manual_pages_and_completions() {
    let home = Home::new();
    let pages = home.path("man1");
    run(home.memfs(["man"]).arg(&pages));
    for page in [
        "memfs.1",
        "memfs-mount.1",
        "memfs-serve.1",
        "memfs-status.1",
    ] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let text = run(&mut home.memfs(["completions", shell]));
        assert!(text.contains("umount"), "{shell}");
        fs::write(home.path(shell), text).unwrap();
    }
    bash(&home.path(""), "bash -n bash");
    let help = run(&mut home.memfs(["--help"]));
    for command in [
        "mount", "serve", "umount", "status", "pull", "flush", "forget", "key",
    ] {
        assert!(help.contains(command), "{help}");
        assert!(
            pages.join(format!("memfs-{command}.1")).exists(),
            "{command}"
        );
    }
    assert_eq!(run(&mut home.memfs(["--version"])).trim(), "memfs 0.1.0");
}
