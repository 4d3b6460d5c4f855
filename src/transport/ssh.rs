//! Starting the far side with the user's own `ssh`.
//!
//! ```text
//! memfs mount host:dir mnt                       ssh host memfs serve --once -- dir
//!   ── MEMFS 1 <public key>\n ────────────────▶   lets this key in and no other
//!   ◀──── memfs: serving DIR on IP:PORT key … ─   made a fresh identity, listens
//!   ◀──── its public key \n ───────────────────   leaves the session: ssh ends
//!   ════════════════ QUIC to host:PORT ════════▶
//! ```

use super::{Identity, PublicKey};

/// How to reach the far side.
#[derive(Clone, Debug)]
pub struct SshTarget {
    /// `[user@]host` as ssh takes it.
    pub destination: String,
    /// The directory there; empty means the home directory.
    pub directory: String,
    /// `--ssh`: the command and its options, split as a shell would.
    pub ssh: Vec<String>,
    /// `--server`: the memfs program there.
    pub server: String,
    /// `--read-only`.
    pub read_only: bool,
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
pub fn start(_target: &SshTarget) -> Result<Started, String> {
    unimplemented!()
}
