//! Starting the far side with the user's own `ssh`.
//!
//! ```text
//! memfs mount host:dir mnt                       ssh host 'memfs' serve --once -- 'dir'
//!   ── MEMFS 1 <public key>\n ────────────────▶   lets this key in and no other
//!   ◀─ memfs: serving DIR on IP:PORT key … \n ─   made a fresh identity, listens
//!   ◀─ memfs: started 1 PORT <public key> [IP] ─  leaves the session: ssh ends
//!   ════════════════ QUIC to host:PORT ════════▶
//! ```
//!
//! `IP` is the address ssh came to, as `SSH_CONNECTION` tells the far side. Whatever a login shell
//! prints besides is skipped; what the far side has to complain about goes to stderr, which is ours.
//!
//! A mount whose far side is gone starts it again in the same way, but with nobody to ask and no terminal.

use super::{Identity, PublicKey};
use crate::sys::end_with_us;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

/// What the two sides say to each other.
const PROTOCOL: &str = "1";
/// The longest line either side takes.
const LINE_BYTES_MAX: u64 = 8192;
/// The most a login shell may print before it gets to the command.
const NOISE_BYTES_MAX: u64 = 1 << 20;
/// So long ssh may take to end once the far side is up.
const ENDING_SECONDS_MAX: i64 = 10;
/// Nothing but the command's own input and output, whatever the user's ssh_config says.
const SSH_OPTIONS: [&str; 4] = ["-T", "-x", "-a", "-oClearAllForwardings=yes"];
/// Where there is nobody to ask.
const UNASKED_OPTIONS: [&str; 2] = ["-oBatchMode=yes", "-oConnectTimeout=10"];
/// What is read of what ssh has to say then.
const WORDS_BYTES_MAX: usize = 4096;

/// How to reach the far side.
#[derive(Clone, Debug)]
pub struct SshTarget {
    /// `[user@]host` as ssh takes it.
    pub destination: String,
    /// The directory there; empty means the home directory.
    pub directory: String,
    /// `--ssh`: the command and its options, split as a shell would: see [`split_command`].
    pub ssh: Vec<String>,
    /// `--server`: the memfs program there.
    pub server: String,
    /// `--read-only`.
    pub read_only: bool,
    /// The folder here that ssh is run in; `None`: the one this process is in.
    pub run_in: Option<PathBuf>,
}

/// The far side is up.
pub struct Started {
    /// Host names or addresses to try, best first: what `ssh -G` resolves the destination to, then the
    /// address ssh itself reached (`SSH_CONNECTION` as the far side saw it).
    pub hosts: Vec<String>,
    /// UDP port.
    pub port: u16,
    /// The key it will show.
    pub server: PublicKey,
    /// The key it will let in.
    pub identity: Identity,
}

/// Runs ssh and waits until the far side serves. ssh may ask the user on the terminal.
///
/// # Errors
/// One line for the user: what ssh or the far side said, and what to do (install memfs there, `--server`).
pub fn start(target: &SshTarget) -> Result<Started, String> {
    greet(target, launch(target, false)?)
}

/// As [`start`], with nobody to ask: keys and agents have to do. Dropped, it ends ssh. To be called within a tokio
/// runtime.
///
/// # Errors
/// As there.
pub async fn start_unasked(target: &SshTarget) -> Result<Started, String> {
    let child = launch(target, true)?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let _ending = Ending(process.map_err(|error| error.to_string())?);
    let target = target.clone();
    let greeted = tokio::task::spawn_blocking(move || greet(&target, child));
    greeted.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Ends a process, if it has not ended.
struct Ending(OwnedFd);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

/// Starts ssh.
fn launch(target: &SshTarget, unasked: bool) -> Result<Child, String> {
    let destination = &target.destination;
    if destination.is_empty() || destination.starts_with('-') {
        return Err(format!("'{destination}' is not a host for ssh"));
    }
    let mut command = ssh(target)?;
    command.args(SSH_OPTIONS);
    if unasked {
        // In a group of its own: what is typed on a terminal, as Ctrl-C, is not meant for it.
        command.args(UNASKED_OPTIONS).process_group(0);
        command
            .env("SSH_ASKPASS_REQUIRE", "never")
            .stderr(Stdio::piped());
    } else {
        // It may wait for an answer of the user or the network for as long as it likes.
        end_with_us(&mut command);
    }
    command
        .arg(destination)
        .arg(remote_command(target))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", target.ssh[0]))
}

/// Tells the far side whom to let in, and hears where it serves; waits for ssh to end.
fn greet(target: &SshTarget, mut child: Child) -> Result<Started, String> {
    let destination = &target.destination;
    let identity = Identity::generate();
    if let Some(mut input) = child.stdin.take() {
        // Where ssh has ended already, its exit status tells more than this error.
        let _ = writeln!(input, "MEMFS {PROTOCOL} {}", identity.public());
    }
    let reply = match child.stdout.take() {
        Some(output) => read_reply(output),
        None => Ok(None),
    };
    let status = end(&mut child).map_err(|error| format!("{}: {error}", target.ssh[0]))?;
    let Some(reply) = reply.map_err(|error| format!("{destination}: {error}"))? else {
        return Err(explain(target, status, last_words(&mut child)));
    };
    let mut hosts = vec![resolved_host(target)];
    if let Some(address) = reply.address.map(|address| address.to_string())
        && !hosts.contains(&address)
    {
        hosts.push(address);
    }
    Ok(Started {
        hosts,
        port: reply.port,
        server: reply.server,
        identity,
    })
}

/// The user's ssh with the user's options.
fn ssh(target: &SshTarget) -> Result<Command, String> {
    let (program, options) = target.ssh.split_first().ok_or("the ssh command is empty")?;
    let mut command = Command::new(program);
    command.args(options);
    if let Some(folder) = target.run_in.as_deref().filter(|folder| folder.is_dir()) {
        command.current_dir(folder);
    }
    Ok(command)
}

/// What the login shell over there is to run.
fn remote_command(target: &SshTarget) -> String {
    let read_only = if target.read_only { " --read-only" } else { "" };
    let directory = match target.directory.as_str() {
        "" => ".",
        directory => directory,
    };
    format!(
        "{} serve --once{read_only} -- {}",
        quote_path(&target.server),
        quote_path(directory)
    )
}

/// One word for any common shell; a `~` in front still means the home directory.
fn quote_path(path: &str) -> String {
    // A backslash stands alone as well: between quotes, fish would read it.
    let quote = |text: &str| {
        let mut quoted = String::from("'");
        for c in text.chars() {
            match c {
                '\'' => quoted.push_str(r"'\''"),
                '\\' => quoted.push_str(r"'\\'"),
                c => quoted.push(c),
            }
        }
        quoted + "'"
    };
    match path.strip_prefix('~') {
        Some("") => "~".into(),
        Some(rest) if rest.starts_with('/') => format!("~/{}", quote(&rest[1..])),
        _ => quote(path),
    }
}

/// What the far side tells about itself.
struct Reply {
    port: u16,
    server: PublicKey,
    address: Option<IpAddr>,
}

/// Finds the reply among what else a login prints; `None` where it ends without one.
fn read_reply(output: impl Read) -> Result<Option<Reply>, String> {
    let mut output = BufReader::new(output.take(NOISE_BYTES_MAX));
    loop {
        let mut line = Vec::new();
        let read = (&mut output)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .map_err(|error| error.to_string())?;
        if read == 0 {
            return match output.get_ref().limit() {
                0 => Err("the login prints without end and memfs does not start".into()),
                _ => Ok(None),
            };
        }
        let line = String::from_utf8_lossy(&line);
        if let Some(reply) = line.strip_prefix("memfs: started ") {
            return parse_reply(reply).map(Some);
        }
        tracing::debug!("ssh: {}", line.trim_end());
    }
}

fn parse_reply(reply: &str) -> Result<Reply, String> {
    let words: Vec<&str> = reply.split_ascii_whitespace().collect();
    let bad = || {
        format!(
            "not an answer of memfs: '{}'",
            reply.trim_end().escape_debug()
        )
    };
    match words[..] {
        [PROTOCOL, port, kind, base64, ref rest @ ..] => Ok(Reply {
            port: port.parse().map_err(|_| bad())?,
            server: format!("{kind} {base64}").parse().map_err(|_| bad())?,
            address: rest.first().and_then(|address| address.parse().ok()),
        }),
        [other, ..] => Err(format!(
            "memfs there starts with protocol {}, this one with {PROTOCOL}: \
             install the same version on both sides",
            other.escape_debug()
        )),
        [] => Err(bad()),
    }
}

/// Waits for ssh to end, which it does when the far side has left; ends it if it does not.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    let ended = match child.try_wait()? {
        Some(_) => true,
        None => {
            let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
            let limit = Timespec {
                tv_sec: ENDING_SECONDS_MAX,
                tv_nsec: 0,
            };
            let mut wait_for = [PollFd::new(&process, PollFlags::IN)];
            // An interruption ends the wait early, which does no harm.
            poll(&mut wait_for, Some(&limit)).is_ok_and(|ready| ready > 0)
        }
    };
    if !ended {
        tracing::debug!("ssh does not end by itself");
        child.kill()?;
    }
    child.wait()
}

/// What ssh, the shell or memfs over there said last, where that does not go to a terminal. ssh has ended; one that it
/// has left running, for connections to come, may still hold the other end.
fn last_words(child: &mut Child) -> Option<String> {
    let mut said = child.stderr.take()?;
    rustix::io::ioctl_fionbio(&said, true).ok()?;
    let mut words = [0; WORDS_BYTES_MAX];
    let read = said.read(&mut words).ok()?;
    let words = String::from_utf8_lossy(&words[..read]);
    let last = words.lines().rfind(|line| !line.trim().is_empty())?;
    Some(last.trim().escape_debug().to_string())
}

/// Why nothing was started, as far as ssh's exit status tells. What ssh, the shell or memfs over there had
/// to say stands on stderr already, unless `words` has it.
fn explain(target: &SshTarget, status: ExitStatus, words: Option<String>) -> String {
    let (host, server) = (&target.destination, &target.server);
    let words = words.map_or_else(|| ", see above".into(), |words| format!(": {words}"));
    match status.code() {
        Some(127) => {
            format!("{server} was not found on {host}; install it there or give --server PATH")
        }
        Some(126) => format!("{server} cannot be run on {host}; give --server PATH"),
        Some(255) => format!("{host}: ssh failed{words}"),
        Some(0) => format!("{host}: '{server} serve' did not start, and ended without a word"),
        Some(code) => format!("{host}: '{server} serve' failed with status {code}{words}"),
        None => format!("{host}: ssh was ended: {status}"),
    }
}

/// The host name that ssh connects to for this destination, by the user's configuration.
fn resolved_host(target: &SshTarget) -> String {
    let configured = || {
        let output = ssh(target)
            .ok()?
            .args(["-G", &target.destination])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let host = text
            .lines()
            .find_map(|line| line.strip_prefix("hostname "))?;
        Some(host.trim().to_string())
    };
    let given = target.destination.rsplit('@').next().unwrap_or_default();
    configured().unwrap_or_else(|| given.to_string())
}

/// Splits a command as a shell would: at spaces, except within quotes or after a backslash.
///
/// # Errors
/// One line that names the command: a quote does not end, or there is nothing.
pub fn split_command(command: &str) -> Result<Vec<String>, String> {
    let wrong = |what| format!("'{command}' is not a command: {what}");
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\\' => {
                let escaped = chars
                    .next()
                    .ok_or_else(|| wrong("it ends in a backslash"))?;
                word.get_or_insert_default().push(escaped);
            }
            '\'' | '"' => {
                let quoted = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(|| wrong("a quote does not end"))? {
                        end if end == c => break,
                        '\\' if c == '"' => match chars.next() {
                            Some(escaped @ ('"' | '\\' | '$' | '`')) => quoted.push(escaped),
                            other => {
                                quoted.push('\\');
                                quoted.extend(other);
                            }
                        },
                        other => quoted.push(other),
                    }
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    if words.is_empty() {
        return Err(wrong("there is nothing in it"));
    }
    Ok(words)
}

/// On the far side: reads whom to let in from standard input.
///
/// # Errors
/// One line for the user.
pub fn read_request(input: impl Read) -> Result<PublicKey, String> {
    let mut line = String::new();
    BufReader::new(input.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .map_err(|error| format!("standard input: {error}"))?;
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next()) {
        (Some("MEMFS"), Some(PROTOCOL)) => {}
        (Some("MEMFS"), Some(other)) => {
            return Err(format!(
                "the mounting side starts with protocol {}, this one with {PROTOCOL}: \
                 install the same version on both sides",
                other.escape_debug()
            ));
        }
        _ => {
            return Err(
                "standard input is neither a terminal nor a mount over ssh: \
                 'memfs serve --once' is started by 'memfs mount HOST:DIR'"
                    .into(),
            );
        }
    }
    let key = words.collect::<Vec<_>>().join(" ");
    key.parse()
        .map_err(|error| format!("standard input: {error}"))
}

/// On the far side: tells the near side where and as whom this process serves.
///
/// # Errors
/// Where standard output is closed.
pub fn write_started(
    mut output: impl Write,
    address: SocketAddr,
    key: &PublicKey,
) -> io::Result<()> {
    // "client-ip client-port server-ip server-port"
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let reached = connection
        .split_ascii_whitespace()
        .nth(2)
        .and_then(|ip| ip.parse::<IpAddr>().ok())
        .map(|ip| ip.to_canonical().to_string())
        .unwrap_or_default();
    let line = format!(
        "memfs: started {PROTOCOL} {} {key} {reached}",
        address.port()
    );
    writeln!(output, "{}", line.trim_end())?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_as_a_shell_does() {
        let split = |command: &str| split_command(command).unwrap();
        assert_eq!(split("ssh"), ["ssh"]);
        assert_eq!(split("  ssh -p  2222\t-v "), ["ssh", "-p", "2222", "-v"]);
        assert_eq!(
            split(r#"ssh -o "ProxyCommand=nc -x 'a b' %h" -i my\ key"#),
            ["ssh", "-o", "ProxyCommand=nc -x 'a b' %h", "-i", "my key"]
        );
        assert_eq!(
            split(r#"a '' "b\"c\d" 'e\'f"#),
            ["a", "", r#"b"c\d"#, r"e\f"]
        );
        for bad in ["", "  ", "ssh 'x", r#"ssh "x"#, r"ssh x\"] {
            assert!(split_command(bad).is_err(), "{bad:?}");
        }
    }

    /// What each shell there is makes of a remote command, with a script in place of memfs.
    #[test]
    fn remote_commands_are_safe_in_every_shell() {
        let home = tempfile::tempdir().unwrap();
        let server = home.path().join("it's \"a\" server");
        std::fs::write(&server, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
        std::fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let at_home = |rest: &str| format!("{}/{rest}", home.path().display());
        let cases = [
            ("", ".".to_string()),
            ("~", home.path().display().to_string()),
            ("~/a b", at_home("a b")),
            ("~/$(id);x", at_home("$(id);x")),
            (
                "it's \"$HOME\" `id` $(id); exit 3 #&|<>*?[a]{a,b}!",
                String::new(),
            ),
            ("-rf", String::new()),
            ("~root/x", String::new()),
            ("a\\b\\\\c", String::new()),
            ("ümläut\tand\u{a0}space", String::new()),
        ];
        let mut tried = 0;
        for shell in [
            "sh", "bash", "dash", "zsh", "fish", "ksh", "tcsh", "busybox",
        ] {
            for (directory, expected) in &cases {
                let target = SshTarget {
                    destination: "host".into(),
                    directory: directory.to_string(),
                    ssh: Vec::new(),
                    server: "~/it's \"a\" server".into(),
                    read_only: true,
                    run_in: None,
                };
                let mut command = Command::new(shell);
                if shell == "busybox" {
                    command.arg("sh");
                }
                let output = command
                    .args(["-c", &remote_command(&target)])
                    .env("HOME", home.path())
                    .output();
                let Ok(output) = output else {
                    eprintln!("SKIPPED: the shell {shell} is not installed");
                    break;
                };
                tried += 1;
                let expected = match expected.as_str() {
                    "" => directory,
                    expected => expected,
                };
                assert_eq!(
                    String::from_utf8(output.stdout).unwrap(),
                    format!("serve\n--once\n--read-only\n--\n{expected}\n"),
                    "{shell}: {directory}"
                );
            }
        }
        assert!(tried > 0);
    }

    #[test]
    fn replies_are_found_among_noise() {
        let key = Identity::generate().public();
        let reply = |text: &str| read_reply(text.as_bytes());
        let found = reply(&format!(
            "Welcome!\n\u{1b}[1mmemfs: not yet\nmemfs: serving /a on [::]:9 key SHA256:x\n\
             memfs: started 1 4567 {key} 10.1.2.3\nmore\n"
        ));
        let found = found.unwrap().unwrap();
        assert_eq!((found.port, found.server), (4567, key));
        assert_eq!(found.address, Some(IpAddr::from([10, 1, 2, 3])));
        let without = format!("memfs: started 1 4567 {key}\n");
        assert_eq!(reply(&without).unwrap().unwrap().address, None);

        assert!(reply("").unwrap().is_none());
        assert!(reply("only noise\nand more").unwrap().is_none());
        for bad in [
            "1 x y z",
            "1 70000 y z",
            "1 1",
            "",
            "1 99 memfs-ed25519 AAAA",
        ] {
            assert!(reply(&format!("memfs: started {bad}\n")).is_err(), "{bad}");
        }
        let other = reply("memfs: started 2 something\n").err().unwrap();
        assert!(other.contains("same version"), "{other}");
        let endless = "x".repeat(NOISE_BYTES_MAX as usize + 1);
        assert!(reply(&endless).is_err());
    }

    #[test]
    fn requests_are_read_strictly() {
        let key = Identity::generate().public();
        let read = |text: &str| read_request(text.as_bytes());
        assert_eq!(read(&format!("MEMFS 1 {key}\n")), Ok(key));
        for bad in ["", "\n", "hello\n", "MEMFS\n", "MEMFS 1\n", "MEMFS 1 x y\n"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        let other = read(&format!("MEMFS 2 {key}\n")).unwrap_err();
        assert!(other.contains("same version"), "{other}");
        assert!(read(&"x".repeat(100_000)).is_err());
    }

    #[test]
    fn what_goes_out_comes_in() {
        let key = Identity::generate().public();
        let mut line = Vec::new();
        write_started(&mut line, "[::]:777".parse().unwrap(), &key).unwrap();
        let reply = read_reply(line.as_slice()).unwrap().unwrap();
        assert_eq!((reply.port, reply.server), (777, key));
    }
}
