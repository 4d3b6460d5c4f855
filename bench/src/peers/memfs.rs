//! memfs: `memfs serve` and `memfs mount memfs://…`, with its defaults.

use super::{How, MOUNT_MAX, Mount, Session};
use crate::link::Side;
use crate::process::run_within;
use memfs::transport::Identity;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const SETTINGS: &str = "defaults; --pull demand for random reads; --immutable for the read-only second mount; --keep-names for listings";

/// The key of both sides: one's own key is trusted and let in.
pub fn identity(home: &Path) -> PathBuf {
    home.join("identity")
}

pub fn prepare(home: &Path) -> Result<(), String> {
    let run = home.join("run");
    std::fs::create_dir_all(&run).map_err(|e| format!("{}: {e}", run.display()))?;
    Identity::load_or_create(&identity(home))
        .map(drop)
        .map_err(|e| e.to_string())
}

/// Nothing of the user's is touched.
fn at_home(command: &mut Command, home: &Path) {
    let folders = [
        ("CONFIG", "config"),
        ("CACHE", "cache"),
        ("STATE", "state"),
        ("RUNTIME", "run"),
    ];
    for (name, folder) in folders {
        let name = match name {
            "RUNTIME" => "XDG_RUNTIME_DIR".to_owned(),
            name => format!("XDG_{name}_HOME"),
        };
        command.env(name, home.join(folder));
    }
}

pub fn serve(session: &mut Session) -> Result<(), String> {
    let place = session.place;
    let mut command = session.command(Side::Server, place.memfs);
    at_home(&mut command, place.home);
    command.args(["serve", "--listen", &session.address(), "--identity"]);
    command.arg(identity(place.home)).arg(place.served);
    let line = super::serve(session, &mut command, "memfs: serving")?;
    let key = line
        .split(" key ")
        .nth(1)
        .ok_or("the server shows no key")?;
    session.key = key.trim().to_owned();
    Ok(())
}

pub fn mount(session: &Session, mount: &mut Mount, how: How) -> Result<(), String> {
    let place = session.place;
    let mut umount = Command::new(place.memfs);
    at_home(&mut umount, place.home);
    umount.arg("umount").arg(&mount.point);
    mount.umount = Some(umount);

    let cache = place.room.join("cache");
    if how.cold && cache.exists() {
        std::fs::remove_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    }
    let mut command = session.command(Side::Client, place.memfs);
    at_home(&mut command, place.home);
    command.args(["mount", "--server-key", &session.key, "--identity"]);
    command.arg(identity(place.home));
    command.arg("--cache").arg(cache);
    command.arg("--log").arg(session.log("mount-daemon"));
    if how.demand {
        command.args(["--pull", "demand"]);
    }
    if how.keep_names {
        command.arg("--keep-names");
    }
    if how.forgetful {
        command.arg("--no-learn");
    }
    if how.read_only {
        command.arg("--immutable");
    }
    command
        .arg(format!("memfs://{}/", session.address()))
        .arg(&mount.point);
    run_within(&mut command, &session.log("mount"), MOUNT_MAX).map(drop)
}
