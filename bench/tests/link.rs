//! A real link: two namespaces, and packets that go from one to the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Whether it can be tried here; if not, says why.
fn can_link(test: &str) -> bool {
    let has = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    };
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/dev/net/tun").exists() {
        "no /dev/net/tun"
    } else if let Some(program) = ["ip", "nsenter", "ping"].into_iter().find(|p| !has(p)) {
        &format!("{program} is not installed")
    } else {
        return true;
    };
    // Past the capture of the test runner.
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
    false
}

struct Link {
    child: Child,
    spaces: [String; 2],
}

impl Link {
    fn start(args: &[&str]) -> Link {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memfs-bench"));
        command.args(["link", "--until-eof"]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["memfs-bench:", "link", a, "10.87.0.1", b, "10.87.0.2"] = words[..] else {
            panic!("{line:?}");
        };
        let spaces = [a.to_owned(), b.to_owned()];
        Link { child, spaces }
    }

    /// The output of a program on side a.
    fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.spaces[0]))
            .args(words);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.child.stdin.take()); // it ends then
        let status = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(status.success(), "{status}");
            for space in &self.spaces {
                assert!(
                    !Path::new("/run/netns").join(space).exists(),
                    "{space} is left"
                );
            }
        }
    }
}

/// The shortest round trip and the share of packets that were lost.
fn ping(link: &Link, args: &[&str]) -> (f64, f64) {
    let words = [&["ping", "-q"], args, &["10.87.0.2"]].concat();
    let text = link.run(&words);
    let lost = text.split(", ").find_map(|part| {
        part.strip_suffix("% packet loss").or_else(|| {
            part.split("% packet loss")
                .next()
                .filter(|_| part.contains("% packet loss"))
        })
    });
    let shortest = text
        .split("mdev = ")
        .nth(1)
        .and_then(|rest| rest.split('/').next());
    let numbers = (
        shortest.unwrap().parse().unwrap(),
        lost.unwrap().parse().unwrap(),
    );
    println!("{numbers:?}");
    numbers
}

#[test]
fn packets_take_their_time() {
    if !can_link("packets_take_their_time") {
        return;
    }
    let link = Link::start(&["--rtt", "20ms"]);
    let (shortest, lost) = ping(&link, &["-c", "5", "-i", "0.05"]);
    assert!(shortest >= 20.0, "{shortest} ms");
    assert!(lost == 0.0, "{lost} % lost");
}

#[test]
fn a_lossy_link_loses() {
    if !can_link("a_lossy_link_loses") {
        return;
    }
    let link = Link::start(&["--loss", "30%"]);
    let (_, lost) = ping(&link, &["-c", "200", "-i", "0.002", "-W", "1"]);
    // Either way, 51 % of the pings come back.
    assert!(lost > 30.0 && lost < 70.0, "{lost} % lost");
}
