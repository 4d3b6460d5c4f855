//! nbdfuse over nbdkit, in the clear: four connections, sixteen threads.

use super::{FILE, Mount, Session, complaint};
use crate::link::Side;
use crate::process::{PATIENCE, start, wait_for};

pub const SETTINGS: &str = "nbdfuse -C 4, nbdkit -t 16 file, in the clear";

pub fn serve(session: &mut Session) -> Result<(), String> {
    let place = session.place;
    let ready = place.room.join("nbdkit.pid");
    let mut command = session.command(Side::Server, "nbdkit");
    command.args([
        "-f",
        "-t",
        "16",
        "-i",
        &session.address,
        "-p",
        &session.port.to_string(),
        "-P",
    ]);
    command.arg(&ready).arg("file").arg(place.served.join(FILE));
    let log = session.log("server");
    let child = session.serving.insert(start(&mut command, &log)?);
    wait_for("nbdkit", PATIENCE, || match child.try_wait() {
        Ok(Some(status)) => Err(format!("nbdkit: {status}: {}", complaint(&log))),
        _ => Ok(ready.exists().then_some(())),
    })
}

pub fn mount(session: &Session, mount: &mut Mount) -> Result<(), String> {
    let mut command = session.command(Side::Client, "nbdfuse");
    command.args(["-C", "4"]).arg(&mount.file);
    command.arg(format!("nbd://{}", session.address()));
    let log = session.log("mount");
    mount.child = Some(start(&mut command, &log)?);
    mount.appears(&log)
}
