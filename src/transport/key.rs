//! Ed25519 identities, public keys and their fingerprints.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An Ed25519 public key (RFC 8032). Written as `memfs-ed25519 BASE64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// `SHA256:` and the unpadded base64 of the hash of its SubjectPublicKeyInfo, as OpenSSH writes
    /// fingerprints.
    pub fn fingerprint(&self) -> String {
        unimplemented!()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(_text: &str) -> Result<PublicKey, KeyError> {
        unimplemented!()
    }
}

/// Why a key could not be had. One line each, naming the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a public key.
    #[error("'{0}' is not a key: expected 'memfs-ed25519 BASE64'")]
    Public(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{path}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// A private key and its public one.
#[derive(Clone)]
pub struct Identity {}

impl Identity {
    /// A fresh one that is kept nowhere.
    pub fn generate() -> Identity {
        unimplemented!()
    }
    /// The one in this file (mode 0600, in a directory 0700), made if there is none.
    ///
    /// # Errors
    /// [`KeyError`]; also where others may read the file.
    pub fn load_or_create(_path: &Path) -> Result<Identity, KeyError> {
        unimplemented!()
    }
    /// Its public key.
    pub fn public(&self) -> PublicKey {
        unimplemented!()
    }
    /// Where the user's own is kept: `$XDG_CONFIG_HOME/memfs/identity`, or `~/.config/memfs/identity`.
    pub fn default_path() -> PathBuf {
        unimplemented!()
    }
}
