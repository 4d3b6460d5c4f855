//! A real sshd with keys and a configuration of its own, and what is started over it.

use memfs::transport::ssh::{self, SshTarget};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const SSHD: &str = "/usr/sbin/sshd";
/// The memfs that is started.
pub const MEMFS: &str = env!("CARGO_BIN_EXE_memfs");

/// An sshd of this test's own; ended when dropped.
pub struct Sshd {
    pub dir: TempDir,
    address: IpAddr,
    port: u16,
    process: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Sshd {
    /// `None`, with a word why, where there is no sshd. `forced` is a command that every login runs.
    pub fn start(forced: Option<&str>) -> Option<Sshd> {
        Sshd::start_at(Ipv4Addr::LOCALHOST.into(), forced)
    }

    /// As [`Sshd::start`], at an address of this machine.
    pub fn start_at(address: IpAddr, forced: Option<&str>) -> Option<Sshd> {
        for program in [SSHD, "/usr/bin/ssh", "/usr/bin/ssh-keygen"] {
            if !Path::new(program).exists() {
                eprintln!("SKIPPED: {program} is not installed (openssh-server, openssh-client)");
                return None;
            }
        }
        if rustix::process::geteuid().is_root() {
            // Where sshd puts its unprivileged half.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        for key in ["host_key", "user_key"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.path().join(key))
                .status();
            assert!(made.unwrap().success());
        }
        let user_key = fs::read_to_string(dir.path().join("user_key.pub")).unwrap();
        let options = match forced {
            Some(command) => format!("command=\"{}\" ", command.replace('"', "\\\"")),
            None => String::new(),
        };
        let authorized = dir.path().join("authorized");
        fs::write(&authorized, format!("{options}{user_key}")).unwrap();
        loop {
            let port = free_port_at(address);
            let at = dir.path().display();
            let config = format!(
                "Port {port}\nListenAddress {address}\nHostKey {at}/host_key\nPidFile none\n\
                 AuthorizedKeysFile {at}/authorized\nStrictModes no\nUsePAM no\n\
                 PasswordAuthentication no\nPermitRootLogin yes\nLogLevel QUIET\n\
                 SetEnv XDG_STATE_HOME={at}/state\n"
            );
            fs::write(dir.path().join("config"), config).unwrap();
            let mut process = Command::new(SSHD)
                .args(["-D", "-e", "-f"])
                .arg(dir.path().join("config"))
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            // Up when it can be connected to; somebody else may have been faster to take the port.
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect((address, port)).is_ok() {
                    return Some(Sshd {
                        dir,
                        address,
                        port,
                        process,
                    });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// What `--ssh` is given.
    pub fn command(&self) -> String {
        let at = self.dir.path().display();
        format!(
            "ssh -F none -p {} -i {at}/user_key -o IdentitiesOnly=yes -o BatchMode=yes \
             -o UserKnownHostsFile={at}/known_hosts -o StrictHostKeyChecking=accept-new \
             -o LogLevel=ERROR",
            self.port
        )
    }

    pub fn target(&self, directory: &str) -> SshTarget {
        SshTarget {
            destination: self.address.to_string(),
            directory: directory.into(),
            ssh: ssh::split_command(&self.command()).unwrap(),
            server: MEMFS.into(),
            read_only: false,
            run_in: None,
        }
    }

    /// A directory to serve, with a name that no shell may take apart, and a file in it.
    pub fn export(&self) -> PathBuf {
        let export = self.dir.path().join("it's \"an\" export; $(exit 7) & more");
        fs::create_dir(&export).unwrap();
        fs::write(export.join("file"), "content").unwrap();
        export
    }
}

/// A TCP port that nobody listens on.
pub fn free_port() -> u16 {
    free_port_at(Ipv4Addr::LOCALHOST.into())
}

fn free_port_at(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Processes of memfs that serve this directory.
pub fn servers_of(directory: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        // It may end meanwhile.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        let is_memfs = words.next() == Some(MEMFS.as_bytes());
        if is_memfs && words.any(|word| word == directory.as_os_str().as_encoded_bytes()) {
            found.push(pid);
        }
    }
    found
}
