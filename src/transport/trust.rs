//! `known_hosts`, `authorized_keys`, and asking on a terminal.

use super::{Identity, KeyError, PublicKey};
use std::path::{Path, PathBuf};

/// Which replicas an authority lets in.
#[derive(Clone)]
pub enum Authorized {
    /// These and no others (a one-shot server: the one key it got over ssh).
    Keys(Vec<PublicKey>),
    /// The server's own key, and those in this file, read again when it changes.
    File {
        /// Always let in.
        own: PublicKey,
        /// `authorized_keys`: one `memfs-ed25519 BASE64 [comment]` a line, `#` comments.
        path: PathBuf,
    },
}

impl Authorized {
    /// Whether `key` is let in now.
    pub fn allows(&self, _key: &PublicKey) -> bool {
        unimplemented!()
    }
    /// Adds a key to a file of authorized keys, made (0600) if there is none; false if it was there.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn authorize(_path: &Path, _key: &PublicKey, _comment: &str) -> Result<bool, KeyError> {
        unimplemented!()
    }
    /// `authorized_keys` beside [`Identity::default_path`].
    pub fn default_path() -> PathBuf {
        unimplemented!()
    }
}

/// What to do about a server that `known_hosts` does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Ask where standard input and error are a terminal, refuse elsewhere.
    Ask,
    /// Remember it (`--accept-new`). A known server with another key is refused all the same.
    Accept,
}

/// Which servers a replica trusts.
#[derive(Clone)]
pub enum ServerTrust {
    /// The one with this key (`--start over ssh`).
    Key(PublicKey),
    /// The one with this fingerprint (`--server-key SHA256:…`).
    Fingerprint(String),
    /// One's own key, and those in this file under the name of the host and port.
    KnownHosts {
        /// Always trusted.
        own: PublicKey,
        /// `known_hosts`: `HOST:PORT memfs-ed25519 BASE64` a line.
        path: PathBuf,
        /// For the rest.
        unknown: Unknown,
    },
}

impl ServerTrust {
    /// `known_hosts` beside [`Identity::default_path`].
    pub fn default_path() -> PathBuf {
        unimplemented!()
    }
    /// Whether `key` is trusted for `host` (`HOST:PORT`); may ask the user and remember. The message
    /// says what was found, what was expected, and what to do.
    ///
    /// # Errors
    /// One line for the user.
    pub fn check(&self, _host: &str, _key: &PublicKey) -> Result<(), String> {
        unimplemented!()
    }
}

/// The user's identity and files, as a convenience for commands.
pub fn default_identity() -> Result<Identity, KeyError> {
    Identity::load_or_create(&Identity::default_path())
}
