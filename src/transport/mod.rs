//! QUIC between two nodes: endpoints, keys and trust, start over SSH.
//!
//! | file | owns |
//! |---|---|
//! | `key` | Ed25519 identities, public keys and their fingerprints |
//! | `trust` | `known_hosts`, `authorized_keys`, and asking on a terminal |
//! | `tls` | rustls set up for raw public keys (RFC 7250) |
//! | `endpoint` | QUIC endpoints and their tuning |
//! | `stream` | messages and frames on QUIC streams |
//! | `ssh` | starting the far side with the user's own `ssh` |

mod congestion;
mod endpoint;
mod key;
pub mod ssh;
pub mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod trust;

pub use endpoint::{ConnectError, Dialer, Listener, PORT_DEFAULT};
pub use key::{Identity, KeyError, PublicKey};
pub use trust::{Authorized, ServerTrust, Unknown};
