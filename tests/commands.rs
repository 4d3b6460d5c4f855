//! The commands: what they do, what they say, and with which exit code. Mounting, and all that ends a mount,
//! is in `mounting.rs`; `key` and what `serve` says of keys in `keys.rs`; what goes wrong on the way in
//! `failures.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::hands::Hands;
use common::{Home, Mount, Serve, bash, complaint, has, noise, output, run, signal, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Names in an object, sorted.
fn keys(object: &Value) -> Vec<&str> {
    let names = object.as_object().unwrap().keys();
    let mut names: Vec<_> = names.map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// The same command with a terminal for its output, which is then copied to where its own would go.
fn on_a_terminal(command: &Command) -> Command {
    let mut script = Command::new("script");
    script.args([
        "-qec",
        // Without TERM a terminal is taken for one that cannot move its cursor.
        &format!("stty cols 100; env TERM=xterm {command:?}"),
        "/dev/null",
    ]);
    script
}

/// Starts a command and reads what it prints until there is enough.
fn read_until(command: &mut Command, enough: impl Fn(&str) -> bool) -> (Child, String) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdout, mut text) = (child.stdout.take().unwrap(), String::new());
    while !enough(&text) {
        let mut bytes = [0; 4096];
        let len = stdout.read(&mut bytes).unwrap();
        assert!(len > 0, "no more came: {text:?}");
        text += &String::from_utf8_lossy(&bytes[..len]);
    }
    (child, text)
}

#[test]
fn status_tells_what_is_here() {
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise(3 << 20, 1)).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--pull", "demand"]);
    let held = File::open(mount.path("file")).unwrap();
    assert_eq!(fs::read(mount.path("file")).unwrap(), noise(3 << 20, 1));
    let status = mount.status();
    let all = "confirmed_bytes conflicts copies_last copy_bytes hash_bytes link link_error link_since mountpoint pid \
               pulled_bytes pushed_bytes read_only regions rtt_us serve_offline server source version waiting";
    assert_eq!(keys(&status).join(" "), all);
    assert_eq!(status["conflicts"], Value::Array(Vec::new()));
    assert_eq!(status["copies_last"], true);
    assert!(status["copy_bytes"].as_u64().unwrap() >= 3 << 20);
    assert_eq!(status["mountpoint"], mount.point().to_str().unwrap());
    assert_eq!(status["source"], serve.source());
    assert_eq!(status["server"], serve.address);
    assert_eq!(status["pid"], mount.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["link"], "up");
    assert_eq!(status["read_only"], false);
    assert!(status["pulled_bytes"].as_u64().unwrap() >= 3 << 20);
    let region = mount.region("file");
    let all = "dirty_bytes in_flight_bytes lent opens path present_bytes refused size";
    assert_eq!(keys(&region).join(" "), all);
    assert_eq!(region["size"], 3 << 20);
    assert_eq!(region["lent"], false);
    assert_eq!(region["present_bytes"], 3 << 20);
    assert_eq!(
        (&region["dirty_bytes"], &region["opens"]),
        (&0.into(), &1.into())
    );
    drop(held);

    // From below a mount point: the same one, in words. Elsewhere there is none.
    let text = run(home.memfs(["status"]).arg(mount.path("file")));
    for word in [
        &*serve.source(),
        &serve.address,
        "read-write",
        "up",
        "pulled",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let said = complaint(home.memfs(["status"]).arg(&served), 1);
    assert!(
        said.contains("served") && said.contains("not on a memfs mount"),
        "{said}"
    );
}

#[test]
fn status_tells_of_all_mounts() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mounts = ["a", "b"].map(|name| Mount::start(&home, &serve, name));
    // Other mounts of this machine may be on their way out: then it complains of these, and tells the rest.
    let told = |args: &[&str]| String::from_utf8(output(&mut home.memfs(args)).stdout).unwrap();
    let all: Value = serde_json::from_str(&told(&["status", "--json"])).unwrap();
    let text = told(&["status"]);
    for mount in &mounts {
        let point = mount.point().to_str().unwrap();
        let told = all.as_array().unwrap().iter();
        assert_eq!(
            told.filter(|told| told["mountpoint"] == point).count(),
            1,
            "{all}"
        );
        assert!(text.contains(&format!(" on {point} (")), "{text}");
    }
}

/// A mount whose process is stopped holds up what is told of others, and is told of itself.
#[test]
fn a_mount_that_does_not_answer_is_told() {
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let stopped = Mount::start(&home, &serve, "stopped");
    let other = Mount::start(&home, &serve, "other");
    let pid = stopped.pid();
    signal(pid, Signal::STOP);
    let point = stopped.point().to_str().unwrap();
    // All at once: each waits for it.
    let ask = [&["status", "--json"][..], &["status"], &["status", point]].map(|args| {
        let mut command = home.memfs(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().unwrap()
    });
    let told = ask.map(|child| child.wait_with_output().unwrap());
    signal(pid, Signal::CONT);
    for told in &told {
        assert_eq!(told.status.code(), Some(1), "{told:?}");
    }
    let why = format!("process {pid} does not answer");
    let all: Value = serde_json::from_slice(&told[0].stdout).unwrap();
    let of = |point: &Path| {
        let mut all = all.as_array().unwrap().iter();
        let found = all.find(|told| told["mountpoint"] == point.to_str().unwrap());
        found.unwrap_or_else(|| panic!("no {point:?}"))
    };
    assert_eq!(of(other.point())["link"], "up");
    let error = of(stopped.point())["error"].as_str().unwrap();
    assert!(error.contains(&why), "{error}");
    let text = String::from_utf8_lossy(&told[1].stdout);
    let block = format!(" on {point} (not answering)\n  {point}: {why}\n");
    assert!(format!("{text}\n").contains(&block), "{text}");
    let other = format!(" on {} (read-write)", other.point().display());
    assert!(text.contains(&other), "{text}");
    let said = String::from_utf8_lossy(&told[2].stderr);
    assert_eq!(said, format!("memfs: {point}: {why}\n"));
    assert!(told[2].stdout.is_empty());
}

#[test]
fn what_cannot_be_printed_is_told() {
    let home = Home::new();
    let served = home.folder("served");
    let serve = Serve::start(&home, &served);
    let mount = Mount::start(&home, &serve, "mnt");
    let (served, point) = (served.to_str().unwrap(), mount.point().to_str().unwrap());
    for args in [
        &["status", point][..],
        &["status", "--json", point],
        &["status", "--watch", point],
        &["conflicts", "--json", point],
        &["key", "show", "--json"],
        &["key"],
        &["completions", "bash"],
        &["serve", "--listen", "127.0.0.1:0", served],
        &["--help"],
        &["mount", "--help"],
        &["--version"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let said = complaint(home.memfs(args).stdout(full), 1);
        let line = "memfs: standard output: No space left on device";
        assert!(said.lines().any(|said| said == line), "{args:?}: {said}");
    }
}

#[test]
fn status_again_and_again() {
    let test = "status_again_and_again";
    let home = Home::new();
    let serve = Serve::start(&home, home.folder("served"));
    let mount = Mount::start(&home, &serve, "mnt");
    let watch = |options: &[&str]| {
        let mut watch = home.memfs(["status", "--watch"]);
        watch.args(options).arg(mount.point());
        watch
    };
    let two_lines = |text: &str| text.matches('\n').count() >= 2;
    let (mut child, text) = read_until(&mut watch(&["--json"]), two_lines);
    for line in text.lines().take(2) {
        let told: Value = serde_json::from_str(line).unwrap();
        assert_eq!(told["link"], "up");
    }
    // It ends when nobody reads any more.
    assert!(child.wait().unwrap().success());

    // The second time there are rates; and without a terminal there is no screen to clear.
    let (mut child, text) = read_until(&mut watch(&[]), |text| text.contains("/s)"));
    assert!(child.wait().unwrap().success());
    assert!(!text.contains('\x1b'), "{text}");
    if has(test, "script") {
        let twice = |text: &str| text.matches("\x1b[2J").count() == 2;
        let (mut child, _) = read_until(&mut on_a_terminal(&watch(&[])), twice);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn pull_brings_files_whole_and_forget_drops_them() {
    let home = Home::new();
    let served = home.folder("served");
    let folder = home.folder("served/folder/below");
    for n in 0..5 {
        fs::write(folder.join(n.to_string()), noise(1_000_000, n)).unwrap();
    }
    fs::write(served.join("empty"), "").unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--pull", "demand"]);
    let pulled = || mount.status()["pulled_bytes"].as_u64().unwrap();
    let present = || mount.region("folder/below/3")["present_bytes"].clone();
    // Held open, so that it is listed.
    let held = File::open(mount.path("folder/below/3")).unwrap();
    let beginning = present().as_u64().unwrap();
    assert!(beginning <= 128 << 10, "opened, not pulled: {beginning}");
    run(home.memfs(["pull", "--wait"]).arg(mount.point()));
    assert!(pulled() >= 5_000_000);
    assert_eq!(present(), 1_000_000);

    run(home.memfs(["forget"]).arg(mount.path("folder")));
    assert_eq!(present(), 0);
    let before = pulled();
    let read = fs::read(mount.path("folder/below/3")).unwrap();
    assert!(read == noise(1_000_000, 3) && pulled() >= before + 1_000_000);
    run(home.memfs(["forget"]).arg(mount.path("folder/below/3")));
    run(home.memfs(["pull"]).arg(mount.path("folder/below/3")));
    wait_until("it is here", || present() == 1_000_000);
    drop(held);
    // One that is not there does not keep the others from being pulled.
    let mut pull = home.memfs(["pull", "--wait"]);
    pull.args([mount.path("none"), mount.path("folder")]);
    let said = complaint(&mut pull, 1);
    assert!(said.contains("none") && said.lines().count() == 1, "{said}");
    let said = complaint(home.memfs(["pull"]).arg(&served), 1);
    assert!(
        said.contains("served") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let test = "progress_is_shown_on_a_terminal_only";
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), noise(32 << 20, 1)).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--pull", "demand"]);
    let mut pull = home.memfs(["pull", "--wait"]);
    pull.arg(mount.path("file"));
    let told = output(&mut pull);
    assert!(
        told.status.success() && told.stdout.is_empty() && told.stderr.is_empty(),
        "{told:?}"
    );
    run(home.memfs(["forget"]).arg(mount.path("file")));
    if has(test, "script") {
        let told = run(&mut on_a_terminal(&pull));
        assert!(
            told.contains("pulling [") && told.contains("MiB"),
            "{told:?}"
        );
    }
}

#[test]
fn flush_sends_what_was_stored_through_a_mapping() {
    let test = "flush_sends_what_was_stored_through_a_mapping";
    let Some(mut hands) = Hands::new(test) else {
        return;
    };
    let home = Home::new();
    let served = home.folder("served");
    fs::write(served.join("file"), vec![b'.'; 8192]).unwrap();
    let serve = Serve::start(&home, &served);
    let mount = Mount::with(&home, &serve.source(), "mnt", &["--push-interval", "1h"]);
    let there = || fs::read(served.join("file")).unwrap()[5000..5003].to_owned();
    hands.make(&format!("f = os.open({:?}, os.O_RDWR)", mount.path("file")));
    hands.make("m = mmap.mmap(f, 8192)");
    for (new, path) in [
        ("all", mount.point().to_owned()),
        ("one", mount.path("file")),
    ] {
        let before = there();
        hands.make(&format!("m[5000:5003] = b'{new}'"));
        assert_eq!(there(), before); // neither by itself within the hour, nor by being looked at
        run(home.memfs(["flush"]).arg(path));
        assert_eq!(there(), new.as_bytes());
    }
    hands.make("(m.close(), os.close(f))");
}

#[test]
fn bad_values_are_named_with_what_is_allowed() {
    let home = Home::new();
    for (line, words) in [
        ("nothing", &["nothing"][..]),
        ("mount a", &["MOUNTPOINT"]),
        ("mount --bogus a b", &["--bogus"]),
        ("mount -o bogus=1 a b", &["bogus=1", "no such option"]),
        (
            "mount --push-interval x a b",
            &["--push-interval", "'x'", "seconds", "ms"],
        ),
        (
            "mount -o push_interval=x a b",
            &["push-interval", "'x'", "seconds", "ms"],
        ),
        ("mount --soft 0 a b", &["--soft", "'0'", "1ms to 8760h"]),
        ("mount --soft 1 --hard a b", &["--soft", "--hard"]),
        (
            "mount --cache-size -1 a b",
            &["--cache-size", "'-1'", "bytes", "G"],
        ),
        (
            "mount --cache-size 1k a b",
            &["--cache-size", "'1k'", "at least 8.0 MiB"],
        ),
        (
            "mount --cache-sise 1G a b",
            &["--cache-sise", "similar", "'--cache-size'"],
        ),
        (
            "mount -o cache_sise=1G a b",
            &["cache_sise=1G", "no such option", "'cache-size'"],
        ),
        (
            "mount --pull demnad a b",
            &["'demnad'", "similar", "'demand'"],
        ),
        (
            "mount --push-interval 10000h a b",
            &["--push-interval", "'10000h'", "1ms to 8760h"],
        ),
        ("moutn a b", &["'moutn'", "similar", "'mount'"]),
        (
            "pull --from 5M --to 1M a",
            &["--from", "5.0 MiB", "--to", "1.0 MiB", "comes after"],
        ),
        (
            "mount --pull x a b",
            &["--pull", "'x'", "background, demand"],
        ),
        ("mount --offline x a b", &["--offline", "'x'", "wait"]),
        ("mount --idmap x a b", &["--idmap", "'x'", "none, user"]),
        ("mount --uid me a b", &["--uid", "'me'", "number from 0"]),
        ("mount --gid -1 a b", &["--gid", "'-1'", "number from 0"]),
        (
            "mount --server-key x memfs://h/ b",
            &["--server-key", "'x'", "SHA256:"],
        ),
        ("mount memfs://h:x/ b", &["memfs://h:x/", "port", "65535"]),
        ("mount memfs://h/a/../b b", &["a/../b", "plain path"]),
        ("mount tape://x b", &["tape://", "directory or mem://"]),
        (
            "serve --listen here /",
            &["--listen", "'here'", "0.0.0.0:4433"],
        ),
        ("serve mem://?size=x", &["'x' is not a size", "bytes"]),
        ("serve tape://x", &["tape://", "directory or mem://"]),
        ("umount", &["MOUNTPOINT"]),
        ("pull", &["PATH"]),
        ("status --jsno", &["--jsno"]),
        ("key authorize xx", &["'xx'", "memfs-ed25519 BASE64"]),
        ("completions x", &["'x'", "bash, elvish, fish"]),
    ] {
        let said = complaint(&mut home.memfs(line.split(' ')), 2);
        assert!(
            said.starts_with("memfs: ") && said.lines().count() == 1,
            "{line}: {said}"
        );
        for word in words {
            assert!(said.contains(word), "{line}: no {word} in: {said}");
        }
    }
}

#[test]
fn help_version_man_pages_and_completions() {
    let home = Home::new();
    let version = run(&mut home.memfs(["--version"]));
    assert_eq!(version.trim(), concat!("memfs ", env!("CARGO_PKG_VERSION")));
    let help = run(&mut home.memfs(["--help"]));
    assert!(
        help.contains("Examples:") && help.contains("memfs mount host:"),
        "{help}"
    );
    let pages = home.path("man");
    run(home.memfs(["man"]).arg(&pages));
    assert!(
        fs::read_to_string(pages.join("memfs.1"))
            .unwrap()
            .contains(".TH")
    );
    let commands = "mount serve umount status pull flush forget key completions man";
    for command in commands.split(' ') {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command} in {help}"
        );
        run(&mut home.memfs([command, "--help"]));
        let page = fs::read_to_string(pages.join(format!("memfs-{command}.1"))).unwrap();
        assert!(page.contains(".TH"), "{command}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&mut home.memfs(["completions", shell]));
        assert!(script.contains("umount"), "{shell}");
        fs::write(home.path(shell), script).unwrap();
    }
    bash(&home.path(""), "bash -n bash");
    // A reader that goes away is no reason to complain.
    let script = format!("{:?} completions bash | head -1", home.program());
    let output = output(Command::new("sh").args(["-c", &script]));
    assert!(output.stderr.is_empty(), "{output:?}");
}
