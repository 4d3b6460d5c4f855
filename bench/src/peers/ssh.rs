//! What goes over sftp: sshfs with its defaults and tuned, rclone; and an sshd of our own for them,
//! with keys and configuration of its own.

use super::{MOUNT_MAX, Mount, Session};
use crate::link::Side;
use crate::process::{run, run_within};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The fastest cipher here, several connections, and pages kept in the kernel over an open.
pub const TUNED: &str = "Ciphers=aes128-gcm@openssh.com,max_conns=4,kernel_cache";
pub const RCLONE_SETTINGS: &str = "--vfs-cache-mode full";

pub fn prepare(home: &Path) -> Result<(), String> {
    for name in ["ssh-host", "ssh-user"] {
        let key = home.join(name);
        if !key.exists() {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&key))?;
        }
    }
    // Where sshd puts those that are not logged in yet.
    fs::create_dir_all("/run/sshd").map_err(|e| format!("/run/sshd: {e}"))
}

pub fn serve(session: &mut Session) -> Result<(), String> {
    let home = session.place.home;
    let config = session.place.room.join("sshd_config");
    let text = format!(
        "ListenAddress {}\nHostKey {home}/ssh-host\nAuthorizedKeysFile {home}/ssh-user.pub\n\
         PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nUseDNS no\n\
         PermitRootLogin prohibit-password\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
        session.address(),
        home = home.display(),
    );
    fs::write(&config, text).map_err(|e| format!("{}: {e}", config.display()))?;
    let mut command = session.command(Side::Server, "/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(&config);
    super::serve(session, &mut command, "Server listening").map(drop)
}

pub fn sshfs(session: &Session, mount: &mut Mount, tuned: Option<&str>) -> Result<(), String> {
    let key = session.place.home.join("ssh-user");
    let mut command = session.command(Side::Client, "sshfs");
    command.args(["-F", "/dev/null", "-p", &session.port.to_string(), "-o"]);
    command.arg(format!(
        "IdentityFile={},IdentitiesOnly=yes,BatchMode=yes,StrictHostKeyChecking=no,\
         UserKnownHostsFile=/dev/null,LogLevel=ERROR",
        key.display()
    ));
    if let Some(tuned) = tuned {
        command.args(["-o", tuned]);
    }
    command.arg(format!(
        "root@{}:{}",
        session.address,
        session.place.served.display()
    ));
    command.arg(&mount.point);
    run_within(&mut command, &session.log("mount"), MOUNT_MAX).map(drop)
}

pub fn rclone(session: &Session, mount: &mut Mount) -> Result<(), String> {
    let place = session.place;
    let mut command = session.command(Side::Client, "rclone");
    command.args([
        "mount",
        "--daemon",
        "--vfs-cache-mode",
        "full",
        "--config",
        "/dev/null",
    ]);
    command
        .arg("--cache-dir")
        .arg(place.room.join("rclone-cache"));
    command.arg(format!(
        ":sftp,host={},port={},user=root,key_file='{}':{}",
        session.address,
        session.port,
        place.home.join("ssh-user").display(),
        place.served.display()
    ));
    command.arg(&mount.point);
    let log = session.log("mount");
    run_within(&mut command, &log, MOUNT_MAX)?;
    mount.appears(&log)
}
