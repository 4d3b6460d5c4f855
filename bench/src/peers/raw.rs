//! The bare transfer, by this program on both sides.

use super::Session;
use super::memfs::identity;
use crate::link::Side;
use crate::process::run_within;
use std::time::Duration;

/// Nothing that is measured takes longer.
const TRANSFER_MAX: Duration = Duration::from_secs(180);

pub fn serve(session: &mut Session) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = session.command(Side::Server, program);
    command.args(["raw-serve", &session.address()]);
    command.arg(identity(session.place.home));
    super::serve(session, &mut command, "memfs-bench: raw on").map(drop)
}

/// What the client prints.
pub fn ask(session: &Session, bytes: u64, args: &[String]) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = session.command(Side::Client, program);
    command.args(["raw", &session.address()]);
    command
        .arg(identity(session.place.home))
        .arg(bytes.to_string());
    command.args(args);
    let printed = run_within(&mut command, &session.log("client"), TRANSFER_MAX)?;
    Ok(printed.lines().last().unwrap_or_default().trim().to_owned())
}
