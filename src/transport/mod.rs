//! QUIC between two nodes: endpoints, keys and trust, start over SSH.
//!
//! | file | owns |
//! |---|---|
//! | `key` | Ed25519 identities, public keys and their fingerprints |
//! | `trust` | `known_hosts`, `authorized_keys`, and asking on a terminal |
//! | `grant` | what a key is let in for: the options in `authorized_keys` |
//! | `tls` | rustls set up for raw public keys (RFC 7250) |
//! | `endpoint` | QUIC endpoints and their tuning |
//! | `dialer` | making connections to a server |
//! | `network` | noticing that the ways out of this machine have changed |
//! | `route` | the way to a server, also when ssh has to start it again |
//! | `stream` | messages and frames on QUIC streams |
//! | `ssh` | starting the far side with the user's own `ssh` |

mod congestion;
mod dialer;
mod endpoint;
mod grant;
mod key;
mod network;
mod route;
pub mod ssh;
pub mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod trust;

pub use dialer::{ConnectError, Dialer, refused};
pub use endpoint::{CONNECTION_WINDOW_BYTES, Listener, PORT_DEFAULT, STREAMS_AT_FIRST};
pub use grant::Grant;
pub use key::{Identity, KeyError, PublicKey};
pub use network::Network;
pub use route::Route;
pub use trust::{Authorized, ServerTrust, Unknown};
