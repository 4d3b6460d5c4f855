//! Ed25519 identities, public keys and their fingerprints.
//!
//! An identity file is text, mode 0600, in a directory of mode 0700:
//!
//! ```text
//! memfs-ed25519-private          the kind of the key
//! MFECAQEwBQYDK2VwBCIEI…         base64 of its PKCS#8 document (RFC 5958)
//! ```
//!
//! It is written under another name and then linked to its own, so that nobody ever sees half of it
//! and all who start at once agree on the one that was linked first.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The word before a public key.
const PUBLIC_KIND: &str = "memfs-ed25519";
/// The first line of an identity file.
const PRIVATE_KIND: &str = "memfs-ed25519-private";
/// An identity file has some 140 bytes.
const IDENTITY_BYTES_MAX: u64 = 4096;
/// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410, 4).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// An Ed25519 public key (RFC 8032). Written as `memfs-ed25519 BASE64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// `SHA256:` and the unpadded base64 of the hash of its SubjectPublicKeyInfo, as OpenSSH writes
    /// fingerprints.
    pub fn fingerprint(&self) -> String {
        let hash = ring::digest::digest(&ring::digest::SHA256, &self.to_spki());
        format!("SHA256:{}", STANDARD_NO_PAD.encode(hash))
    }

    /// Its SubjectPublicKeyInfo in DER, as TLS carries it.
    pub(super) fn to_spki(self) -> [u8; 44] {
        let mut spki = [0; 44];
        spki[..12].copy_from_slice(&SPKI_PREFIX);
        spki[12..].copy_from_slice(&self.0);
        spki
    }

    /// The key in a SubjectPublicKeyInfo, if it is one of Ed25519 and nothing else is there.
    pub(super) fn from_spki(spki: &[u8]) -> Option<PublicKey> {
        let key = spki.strip_prefix(&SPKI_PREFIX)?;
        Some(PublicKey(key.try_into().ok()?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_KIND} {}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    /// Exactly the two words that are printed; any space around and between them.
    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let mut words = text.split_ascii_whitespace();
        let key = match (words.next(), words.next(), words.next()) {
            (Some(PUBLIC_KIND), Some(base64), None) => STANDARD
                .decode(base64)
                .ok()
                .and_then(|key| key.try_into().ok()),
            _ => None,
        };
        key.map(PublicKey).ok_or_else(|| {
            let shown: String = text.chars().take(100).collect();
            KeyError::Public(shown.escape_debug().to_string())
        })
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
    /// Nobody knows where the user's files are.
    #[error(
        "XDG_CONFIG_HOME and HOME are not set to absolute paths, and this user has no home: \
         set one of them, or say which files to use"
    )]
    NoHome,
}

impl KeyError {
    /// For `map_err` on calls that concern `path`.
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> KeyError {
        let path = path.to_path_buf();
        |source| KeyError::File { path, source }
    }

    /// `path` does not hold what it should.
    pub(super) fn content(path: &Path, what: impl Into<String>) -> KeyError {
        KeyError::Content {
            path: path.to_path_buf(),
            what: what.into(),
        }
    }
}

/// A private key and its public one.
#[derive(Clone)]
pub struct Identity {
    pkcs8: Arc<[u8]>,
    public: PublicKey,
}

impl Identity {
    /// A fresh one that is kept nowhere.
    #[allow(
        clippy::expect_used,
        reason = "getrandom(2) with these arguments cannot fail, and the document was just made"
    )]
    pub fn generate() -> Identity {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("random bytes");
        Identity::from_pkcs8(pkcs8.as_ref()).expect("a document just made")
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Option<Identity> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).ok()?;
        Some(Identity {
            pkcs8: pkcs8.into(),
            public: PublicKey(pair.public_key().as_ref().try_into().ok()?),
        })
    }

    /// The one in this file (mode 0600, in a directory 0700), made if there is none.
    ///
    /// # Errors
    /// [`KeyError`]; also where others may read the file.
    pub fn load_or_create(path: &Path) -> Result<Identity, KeyError> {
        match File::open(path) {
            Ok(file) => Identity::load(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path, &Identity::generate()).map_err(KeyError::file(path))?;
                // Whoever linked first has won: it is this one or another process's.
                let file = File::open(path).map_err(KeyError::file(path))?;
                Identity::load(path, file)
            }
            Err(error) => Err(KeyError::file(path)(error)),
        }
    }

    fn load(path: &Path, file: File) -> Result<Identity, KeyError> {
        let meta = file.metadata().map_err(KeyError::file(path))?;
        if !meta.is_file() {
            return Err(KeyError::content(path, "not a regular file"));
        }
        if meta.mode() & 0o077 != 0 {
            let what = format!(
                "others can get at this private key (mode {:04o}): \
                 'chmod 600' it, or move it away to have a new one made",
                meta.mode() & 0o7777
            );
            return Err(KeyError::content(path, what));
        }
        let mut text = String::new();
        file.take(IDENTITY_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(KeyError::file(path))?;
        let mut words = text.split_ascii_whitespace();
        let identity = match (words.next(), words.next(), words.next()) {
            (Some(PRIVATE_KIND), Some(base64), None) => STANDARD
                .decode(base64)
                .ok()
                .and_then(|pkcs8| Identity::from_pkcs8(&pkcs8)),
            _ => None,
        };
        identity.ok_or_else(|| {
            let what = "not a memfs identity: move it away to have a new one made";
            KeyError::content(path, what)
        })
    }

    /// Its public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// One that claims another's public key, as an impostor would.
    #[cfg(test)]
    pub(super) fn claiming(self, public: PublicKey) -> Identity {
        Identity { public, ..self }
    }

    /// The private key's PKCS#8 document.
    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// A secret of its own for each purpose, the same whenever the identity is.
    pub(super) fn secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.pkcs8);
        let mut secret = [0; 32];
        secret.copy_from_slice(ring::hmac::sign(&key, purpose.as_bytes()).as_ref());
        secret
    }

    /// Where the user's own is kept: `$XDG_CONFIG_HOME/memfs/identity`, or `~/.config/memfs/identity`.
    ///
    /// # Errors
    /// [`KeyError::NoHome`].
    pub fn default_path() -> Result<PathBuf, KeyError> {
        config_file("identity")
    }

    /// The user's own, made if there is none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load_default() -> Result<Identity, KeyError> {
        Identity::load_or_create(&Identity::default_path()?)
    }
}

/// The user's own file of this name.
pub(super) fn config_file(name: &str) -> Result<PathBuf, KeyError> {
    let absolute = |path: &PathBuf| path.is_absolute();
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    // mount(8) and service managers do not set HOME; it is then what passwd(5) says.
    let config = config
        .filter(absolute)
        .or_else(|| Some(std::env::home_dir().filter(absolute)?.join(".config")))
        .ok_or(KeyError::NoHome)?;
    Ok(config.join("memfs").join(name))
}

/// Makes the directory a file is to be in, for nobody else, unless it is there.
pub(super) fn make_directory_for(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)
        }
        _ => Ok(()),
    }
}

/// Writes an identity to `path` unless there is something already.
fn create(path: &Path, identity: &Identity) -> io::Result<()> {
    make_directory_for(path)?;
    let mut random = [0; 8];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| io::Error::other("no random bytes"))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".new-{:016x}", u64::from_le_bytes(random)));
    let temporary = path.with_file_name(name);

    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)?;
        let base64 = STANDARD.encode(identity.pkcs8());
        file.write_all(format!("{PRIVATE_KIND}\n{base64}\n").as_bytes())?;
        file.sync_all()?;
        link(&temporary, path)
    })();
    // A name that was renamed away, or never made, needs no removal.
    let _ = std::fs::remove_file(&temporary);
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Gives `from` the name `to` unless that is taken; where there are no hard links, by renaming.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(io::Error::from)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn public_keys_as_text() {
        let key = Identity::generate().public();
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        assert_eq!(format!("  {key}\n").parse::<PublicKey>().unwrap(), key);
        let base64 = STANDARD.encode(key.0);
        for bad in [
            String::new(),
            base64.clone(),
            format!("ssh-ed25519 {base64}"),
            format!("{PUBLIC_KIND} {base64} more"),
            format!("{PUBLIC_KIND} {}", STANDARD.encode([7; 31])),
            format!("{PUBLIC_KIND} {}", STANDARD.encode([7; 33])),
            format!("{PUBLIC_KIND} \u{1b}[31m{base64}"),
        ] {
            let error = bad.parse::<PublicKey>().unwrap_err().to_string();
            assert!(!error.contains('\u{1b}') && error.contains("expected"));
        }
    }

    #[test]
    fn fingerprint_is_of_the_spki() {
        // openssl dgst -sha256 -binary, of the DER, in base64
        let key = PublicKey([0; 32]);
        assert_eq!(
            key.fingerprint(),
            "SHA256:ciq9EumaU2fzda65ZyqOB3EuA8Kt0W+o1pFNHPou/gw"
        );
        assert_eq!(PublicKey::from_spki(&key.to_spki()), Some(key));
        assert_eq!(PublicKey::from_spki(&key.to_spki()[..43]), None);
        assert_eq!(
            PublicKey::from_spki(&[&key.to_spki()[..], &[0]].concat()),
            None
        );
        let mut x25519 = key.to_spki();
        x25519[8] = 0x6e;
        assert_eq!(PublicKey::from_spki(&x25519), None);
    }

    #[test]
    fn identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/identity");
        let first = Identity::load_or_create(&path).unwrap();
        let again = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.public(), again.public());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&dir.path().join("a/b")), 0o700);
        assert_eq!(
            std::fs::read_dir(dir.path().join("a/b")).unwrap().count(),
            1
        );
    }

    #[test]
    fn all_who_start_at_once_have_one_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memfs/identity");
        let start = std::sync::Barrier::new(16);
        let keys: Vec<PublicKey> = std::thread::scope(|scope| {
            let one = || {
                start.wait();
                Identity::load_or_create(&path).unwrap().public()
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }

    #[test]
    fn unusable_identities_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        Identity::load_or_create(&path).unwrap();
        let refusal = |path: &Path| Identity::load_or_create(path).err().unwrap().to_string();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(refusal(&path).contains("mode 0640"), "{}", refusal(&path));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for bad in [
            "".to_string(),
            text.replace("private", "public"),
            text[..text.len() / 2].to_string(),
            format!("{text}more"),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(refusal(&path).contains("not a memfs identity"));
        }
        assert!(refusal(dir.path()).contains("not a regular file"));
        // What stands in the way is not followed elsewhere.
        let dangling = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere/x"), &dangling).unwrap();
        refusal(&dangling);
        assert!(!dir.path().join("nowhere").exists());
    }
}
