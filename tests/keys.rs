//! `memfs key` and `memfs serve` as programs: what they print, how they end, whom they let in.
#![allow(clippy::unwrap_used, reason = "a test ends where anything fails")]

use memfs::transport::{Dialer, Identity, PublicKey, ServerTrust, stream};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// The program, with its files below this directory.
fn memfs(config: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memfs"));
    command
        .args(args)
        .env("XDG_CONFIG_HOME", config)
        .env_remove("MEMFS_LOG")
        .stdin(Stdio::null());
    command
}

fn run(config: &Path, args: &[&str]) -> Output {
    memfs(config, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asserts that it ends with this code and one line on stderr.
#[track_caller]
fn complaint(config: &Path, args: &[&str], code: i32) -> String {
    let output = run(config, args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("memfs: "), "{said}");
    said
}

/// `memfs serve`, ended when dropped.
struct Serve {
    process: Child,
    /// Its one line.
    line: String,
    address: SocketAddr,
}

impl Serve {
    fn start(config: &Path, args: &[&str]) -> Serve {
        let mut process = memfs(config, &["serve", "--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        // memfs: serving STORE on IP:PORT key SHA256:…
        let address = line.split(' ').rev().nth(2).unwrap_or_default();
        Serve {
            address: address.parse().unwrap(),
            line,
            process,
        }
    }

    fn dialer(&self, identity: &Identity, trust: ServerTrust) -> Dialer {
        let (host, port) = (self.address.ip().to_string(), self.address.port());
        Dialer::new(&host, port, identity.clone(), trust).unwrap()
    }

    /// Ends it with SIGTERM; what it said on stderr.
    fn stop(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let errors = self.process.stderr.take().unwrap();
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
        std::io::read_to_string(errors).unwrap()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn directory() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap().to_string();
    (dir, path)
}

#[test]
fn a_key_is_made_shown_and_authorized() {
    let (config, _) = directory();
    let shown = run(config.path(), &["key"]);
    assert!(shown.status.success());
    let key: PublicKey = text(&shown.stdout).parse().unwrap();
    assert_eq!(text(&shown.stderr), format!("{}\n", key.fingerprint()));
    let json = run(config.path(), &["key", "show", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["key"], key.to_string());
    assert_eq!(json["fingerprint"], key.fingerprint());

    let friend = Identity::generate().public();
    // As it comes from a shell without quotes, and with.
    let words = friend.to_string();
    let words: Vec<&str> = words.split(' ').collect();
    let unquoted = [&["key", "authorize"], words.as_slice(), &["a", "friend"]].concat();
    assert!(run(config.path(), &unquoted).status.success());
    let again = run(config.path(), &["key", "authorize", &friend.to_string()]);
    assert!(again.status.success() && text(&again.stderr).contains("already"));
    let path = config.path().join("memfs/authorized_keys");
    let listed = fs::read_to_string(&path).unwrap();
    assert_eq!(listed, format!("{friend} a friend\n"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_key_is_authorized_for_less() {
    let (config, _) = directory();
    let friend = Identity::generate().public();
    let authorize = |options: &[&str]| {
        let key = friend.to_string();
        run(
            config.path(),
            &[&["key", "authorize"], options, &[&key, "friend"]].concat(),
        )
    };
    let options = ["--read-only", "--subtree", "of \"2024\", all/"];
    assert!(authorize(&options).status.success());
    assert!(text(&authorize(&options).stderr).contains("already"));
    let listed = fs::read_to_string(config.path().join("memfs/authorized_keys")).unwrap();
    let expected = format!("read-only,subtree=\"of \\\"2024\\\", all\" {friend} friend\n");
    assert_eq!(listed, expected);
    // More or less than that only by who changes the line.
    for options in [&[][..], &["--read-only"], &["--subtree", "other"]] {
        let output = authorize(options);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(
            said.contains("line 1 has this key with the options read-only,"),
            "{said}"
        );
    }
    for bad in ["/", "", "..", "a/../b", "/etc", "a\nmemfs-ed25519 AAAA"] {
        let output = authorize(&["--subtree", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}");
        let said = text(&output.stderr);
        assert!(said.contains("no directory below what is served"), "{said}");
    }
}

#[test]
fn what_is_wrong_with_serving_keys_is_told_at_once() {
    let (config, _) = directory();
    let (_served, store) = directory();
    run(config.path(), &["key"]);
    let path = config.path().join("memfs/authorized_keys");
    let key = Identity::generate().public();
    fs::write(&path, format!("# well\nreadonly {key}\n")).unwrap();
    let said = Serve::start(config.path(), &[&store]).stop();
    let place = format!(
        "{}:2: no option 'readonly': allowed are read-only and",
        path.display()
    );
    assert!(
        said.contains(&place) && said.contains("lets nobody in"),
        "{said}"
    );
}

#[test]
fn what_is_wrong_with_keys_is_told() {
    let (config, _) = directory();
    let said = complaint(
        config.path(),
        &["key", "authorize", "ssh-ed25519", "AAAA"],
        2,
    );
    assert!(said.contains("'ssh-ed25519 AAAA' is not a key"), "{said}");
    complaint(config.path(), &["key", "authorize"], 2);

    run(config.path(), &["key"]);
    let identity = config.path().join("memfs/identity");
    fs::set_permissions(&identity, PermissionsExt::from_mode(0o644)).unwrap();
    let said = complaint(config.path(), &["key"], 1);
    let path = identity.to_str().unwrap();
    assert!(said.contains(path) && said.contains("chmod 600"), "{said}");

    // Without HOME it is what passwd(5) says, which is tried out in `mounting.rs`.
    let mut homeless = memfs(config.path(), &["key"]);
    let output = homeless
        .env_remove("XDG_CONFIG_HOME")
        .env("HOME", "not/absolute")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("HOME"),
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn a_server_lets_in_whom_it_should_and_says_whom_it_refused() {
    let (config, _) = directory();
    let (_served, store) = directory();
    let serve = Serve::start(config.path(), &[&store]);
    let own = Identity::load_or_create(&config.path().join("memfs/identity")).unwrap();
    let fingerprint = own.public().fingerprint();
    let address = serve.address;
    let line = format!("memfs: serving {store} on {address} key {fingerprint}\n");
    assert_eq!(serve.line, line);

    let trust = ServerTrust::Fingerprint(fingerprint);
    serve
        .dialer(&own, trust.clone())
        .connect(PATIENCE)
        .await
        .unwrap();
    let friend = Identity::generate();
    let dialer = serve.dialer(&friend, trust);
    if let Ok(connection) = dialer.connect(PATIENCE).await {
        connection.closed().await;
        assert!(stream::is_unauthorized(&connection));
    }
    run(
        config.path(),
        &["key", "authorize", &friend.public().to_string()],
    );
    let connection = dialer.connect(PATIENCE).await.unwrap();
    let said = serve.stop();
    // It says goodbye: this is not found out by silence. Where it had not finished the handshake itself, QUIC has it
    // say so in other words (RFC 9000, 10.2.3).
    let closed = connection.closed().await;
    let said_goodbye = matches!(
        closed,
        quinn::ConnectionError::ApplicationClosed(_) | quinn::ConnectionError::ConnectionClosed(_)
    );
    assert!(said_goodbye, "{closed}");
    assert!(said.contains(&friend.public().fingerprint()), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn what_is_wrong_with_serving_is_told() {
    let (config, _) = directory();
    let (_served, store) = directory();
    let nowhere = format!("{store}/nowhere");
    let said = complaint(config.path(), &["serve", &nowhere], 1);
    assert!(said.contains(&nowhere), "{said}");
    for bad in ["s3://bucket", "mem://", "mem://?size=much"] {
        let said = complaint(config.path(), &["serve", bad], 2);
        assert!(said.contains("mem://?size="), "{said}");
    }
    complaint(config.path(), &["serve", "--listen", "nowhere", &store], 2);

    let serve = Serve::start(config.path(), &["mem://?size=1M"]);
    let taken = serve.address.to_string();
    let said = complaint(config.path(), &["serve", "--listen", &taken, &store], 1);
    assert!(said.contains(&taken), "{said}");
    assert_eq!(serve.stop(), "");

    // Without a terminal it waits for a mount's word over ssh.
    let said = complaint(config.path(), &["serve", "--once", &store], 1);
    assert!(said.contains("memfs mount HOST:DIR"), "{said}");
}
