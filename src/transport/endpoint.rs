//! QUIC endpoints and their tuning.

use super::{Authorized, Identity, PublicKey, ServerTrust};
use std::net::SocketAddr;

/// Why a connection could not be made. One line each for the user, naming host and address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve.
    #[error("{host}: {reason}")]
    Resolve {
        /// As given.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "{host}: no answer from {address} (is 'memfs serve' running there, and UDP let through?)"
    )]
    Unreachable {
        /// As given.
        host: String,
        /// What was tried.
        address: SocketAddr,
    },
    /// The server's key is not trusted.
    #[error("{0}")]
    Untrusted(String),
    /// The server does not let this key in.
    #[error(
        "{host}: the server does not accept this key ({key}); on the server run: memfs key authorize '{line}'"
    )]
    Unauthorized {
        /// As given.
        host: String,
        /// Our fingerprint.
        key: String,
        /// Our public key.
        line: String,
    },
    /// Anything else.
    #[error("{host}: {reason}")]
    Failed {
        /// As given.
        host: String,
        /// What went wrong.
        reason: String,
    },
}

/// Makes connections to one server, again and again.
#[derive(Clone)]
pub struct Dialer {}

impl Dialer {
    /// For `host` (a name or address; resolved anew for each connection) and `port`. To be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// Where no UDP socket can be had.
    pub fn new(
        _host: &str,
        _port: u16,
        _identity: Identity,
        _trust: ServerTrust,
    ) -> std::io::Result<Dialer> {
        unimplemented!()
    }
    /// A connection on which the handshake has succeeded and the server's key was found trusted.
    /// Tries each address the name has. Gives up after `patience`.
    ///
    /// # Errors
    /// [`ConnectError`]. The server's refusal of our key arrives after the handshake (TLS 1.3), so it
    /// can also show as the first stream's failure: see [`super::stream::is_unauthorized`].
    pub async fn connect(
        &self,
        _patience: std::time::Duration,
    ) -> Result<quinn::Connection, ConnectError> {
        unimplemented!()
    }
    /// `host:port`, for messages.
    pub fn name(&self) -> String {
        unimplemented!()
    }
    /// Our fingerprint and key, for messages.
    pub fn public(&self) -> PublicKey {
        unimplemented!()
    }
}

/// Takes connections.
pub struct Listener {}

impl Listener {
    /// Listens on `address`. To be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub fn new(
        _address: SocketAddr,
        _identity: &Identity,
        _authorized: Authorized,
    ) -> std::io::Result<Listener> {
        unimplemented!()
    }
    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        unimplemented!()
    }
    /// The next connection whose handshake has succeeded, with a key that is let in. Handshakes go
    /// on beside each other; those that fail are logged and dropped. `None` after `close`.
    pub async fn accept(&self) -> Option<(quinn::Connection, PublicKey)> {
        unimplemented!()
    }
    /// Takes no more connections and closes those there are.
    pub fn close(&self) {
        unimplemented!()
    }
}
