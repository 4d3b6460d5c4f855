//! `known_hosts`, `authorized_keys`, and asking on a terminal.
//!
//! Both are text, one key a line; empty lines and those that begin with `#` are skipped:
//!
//! ```text
//! authorized_keys    memfs-ed25519 BASE64 [comment]
//! known_hosts        HOST:PORT memfs-ed25519 BASE64
//! ```
//!
//! They are read whenever they are needed, and written by appending one line under a lock. Whatever
//! cannot be read lets nobody in.

use super::key::{config_file, make_directory_for};
use super::{KeyError, PublicKey};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, IsTerminal as _, Read as _, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The longest file of keys that is read: some 10,000 of them.
const FILE_BYTES_MAX: u64 = 1 << 20;

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
    /// Whether `key` is let in now. Reads the file anew.
    pub fn allows(&self, key: &PublicKey) -> bool {
        match self {
            Authorized::Keys(keys) => keys.contains(key),
            Authorized::File { own, .. } if own == key => true,
            Authorized::File { path, .. } => match read_authorized(path) {
                Ok(text) => keys(path, &text).any(|listed| listed == *key),
                Err(error) => {
                    tracing::warn!("{error}: only the server's own key is let in");
                    false
                }
            },
        }
    }

    /// Adds a key to a file of authorized keys, made (0600) if there is none; false if it was there.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn authorize(path: &Path, key: &PublicKey, comment: &str) -> Result<bool, KeyError> {
        let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
        let line = format!("{key} {comment}");
        append(path, line.trim_end(), |text| {
            Ok(keys(path, text).any(|listed| listed == *key))
        })
    }

    /// `authorized_keys` beside [`super::Identity::default_path`].
    ///
    /// # Errors
    /// [`KeyError::NoHome`].
    pub fn default_path() -> Result<PathBuf, KeyError> {
        config_file("authorized_keys")
    }
}

/// The text of a file that says who is let in, which nobody but its owner may change.
fn read_authorized(path: &Path) -> Result<String, KeyError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        opened => opened.map_err(KeyError::file(path))?,
    };
    let mode = file.metadata().map_err(KeyError::file(path))?.mode();
    if mode & 0o022 != 0 {
        let what = format!(
            "others can change this file (mode {:04o}): 'chmod go-w' it",
            mode & 0o7777
        );
        return Err(KeyError::content(path, what));
    }
    read(path, &file)
}

/// The keys in the text of `authorized_keys`; lines that hold none are logged.
fn keys(path: &Path, text: &str) -> impl Iterator<Item = PublicKey> {
    lines(text).filter_map(move |(number, line)| {
        let mut words = line.split_ascii_whitespace();
        let (kind, base64) = (words.next(), words.next().unwrap_or_default());
        let key = format!("{} {base64}", kind.unwrap_or_default()).parse();
        if key.is_err() {
            let path = path.display();
            tracing::warn!("{path}:{number}: not 'memfs-ed25519 BASE64 [comment]', skipped");
        }
        key.ok()
    })
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
    /// `known_hosts` beside [`super::Identity::default_path`].
    ///
    /// # Errors
    /// [`KeyError::NoHome`].
    pub fn default_path() -> Result<PathBuf, KeyError> {
        config_file("known_hosts")
    }

    /// Whether `key` is trusted for `host` (`HOST:PORT`); may ask the user and remember. The message
    /// says what was found, what was expected, and what to do.
    ///
    /// # Errors
    /// One line for the user.
    pub fn check(&self, host: &str, key: &PublicKey) -> Result<(), String> {
        let shown = key.fingerprint();
        let other = |expected: &str, whence: &str| {
            Err(format!(
                "{host}: the server shows the key {shown}, not {expected} {whence}; \
                 somebody may be in between: nothing was sent"
            ))
        };
        match self {
            ServerTrust::Key(expected) if expected == key => Ok(()),
            ServerTrust::Key(expected) => other(&expected.fingerprint(), "that was agreed on"),
            ServerTrust::Fingerprint(expected) if expected.trim_end_matches('=') == shown => Ok(()),
            ServerTrust::Fingerprint(expected) => other(expected, "given with --server-key"),
            ServerTrust::KnownHosts { own, .. } if own == key => Ok(()),
            ServerTrust::KnownHosts { path, unknown, .. } => {
                let text = match File::open(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
                    Err(error) => Err(KeyError::file(path)(error)),
                    Ok(file) => read(path, &file),
                };
                let text = text.map_err(|error| format!("{host}: {error}"))?;
                if is_known(path, &text, host, key)? {
                    return Ok(());
                }
                match unknown {
                    Unknown::Accept => {}
                    Unknown::Ask => ask(host, &shown)?,
                }
                remember(path, host, key)
            }
        }
    }
}

/// Whether the text of `known_hosts` has this key for the host; an error where it has another.
fn is_known(path: &Path, text: &str, host: &str, key: &PublicKey) -> Result<bool, String> {
    let mut other = None;
    for (number, line) in lines(text) {
        let Some((name, listed)) = line.split_once(|c: char| c.is_ascii_whitespace()) else {
            continue;
        };
        if !name.eq_ignore_ascii_case(host) {
            continue;
        }
        match listed.parse::<PublicKey>() {
            Ok(listed) if listed == *key => return Ok(true),
            Ok(listed) => other = Some((number, listed.fingerprint())),
            Err(error) => {
                return Err(format!("{host}: {}:{number}: {error}", path.display()));
            }
        }
    }
    let Some((number, listed)) = other else {
        return Ok(false);
    };
    let (path, shown) = (path.display(), key.fingerprint());
    Err(format!(
        "{host}: THE SERVER'S KEY HAS CHANGED: it shows {shown}, but {path}:{number} has {listed}; \
         somebody may be in between: nothing was sent. If the change is right, remove that line"
    ))
}

/// Asks the user whether the key of an unknown server is right, where there is somebody to ask.
fn ask(host: &str, shown: &str) -> Result<(), String> {
    let (input, output) = (io::stdin(), io::stderr());
    if input.is_terminal()
        && output.is_terminal()
        && answers_yes(host, shown, input.lock(), output.lock())
    {
        return Ok(());
    }
    Err(format!(
        "{host}: unknown server, its key is {shown}; \
         if that is right, say so with --server-key {shown} (or trust it blindly with --accept-new)"
    ))
}

/// Asks until there is an answer; none is a no.
fn answers_yes(host: &str, shown: &str, input: impl BufRead, mut output: impl Write) -> bool {
    let mut question = format!(
        "memfs: {host} is not known yet. The key it shows is\n  {shown}\nTrust it from now on (yes/no)? "
    );
    // Bounded, for what is at hand may be anything.
    let mut input = input.take(4096);
    loop {
        let _ = output.write_all(question.as_bytes());
        let _ = output.flush();
        let mut answer = String::new();
        let read = input.read_line(&mut answer);
        match answer.trim() {
            "yes" => return true,
            "no" => return false,
            _ if read.is_err() || answer.is_empty() => return false,
            _ => question = "Please type 'yes' or 'no': ".into(),
        }
    }
}

/// Adds a server to `known_hosts`, unless another process was faster, maybe with another key.
fn remember(path: &Path, host: &str, key: &PublicKey) -> Result<(), String> {
    let mut known = Ok(false);
    append(path, &format!("{host} {key}"), |text| {
        known = is_known(path, text, host, key);
        // An error counts as being there: nothing is added.
        Ok(*known.as_ref().unwrap_or(&true))
    })
    .map_err(|error| format!("{host}: its key cannot be remembered: {error}"))?;
    known?;
    let (path, shown) = (path.display(), key.fingerprint());
    tracing::info!("{host}: the key {shown} is remembered in {path}");
    Ok(())
}

/// The lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .zip(1..)
        .map(|(line, number)| (number, line.trim_ascii()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// The whole text of a file, if it is not too long.
fn read(path: &Path, file: &File) -> Result<String, KeyError> {
    let mut text = String::new();
    let mut limited = file.take(FILE_BYTES_MAX + 1);
    limited
        .read_to_string(&mut text)
        .map_err(KeyError::file(path))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let what = format!("longer than {FILE_BYTES_MAX} bytes");
        return Err(KeyError::content(path, what));
    }
    Ok(text)
}

/// Adds a line to a file, made (0600) if there is none, unless `is_there` finds it in the text; false if
/// it was there.
fn append(
    path: &Path,
    line: &str,
    is_there: impl FnOnce(&str) -> Result<bool, KeyError>,
) -> Result<bool, KeyError> {
    let failed = || KeyError::file(path);
    make_directory_for(path).map_err(failed())?;
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(failed())?;
    // Held until the file is closed.
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| failed()(error.into()))?;
    let text = read(path, &file)?;
    if is_there(&text)? {
        return Ok(false);
    }
    // One write, so that a reader sees all of the line or nothing.
    let newline = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    file.write_all(format!("{newline}{line}\n").as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Identity;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_yes_is_yes() {
        let answers = |input: &str| {
            let mut asked = Vec::new();
            let yes = answers_yes("host:1", "SHA256:x", input.as_bytes(), &mut asked);
            (yes, String::from_utf8(asked).unwrap())
        };
        let (yes, asked) = answers("yes\n");
        assert!(yes && asked.contains("host:1") && asked.contains("SHA256:x"));
        assert!(answers("what\n\n  yes \nno\n").0);
        let endless = "y\n".repeat(10_000);
        for no in ["", "no\n", "y\n", "YES", "\n\n", "no\nyes\n", &endless] {
            assert!(!answers(no).0, "{no}");
        }
    }

    #[test]
    fn authorized_keys_are_read_with_care() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memfs/authorized_keys");
        let keys: Vec<PublicKey> = (0..4).map(|_| Identity::generate().public()).collect();
        let authorized = Authorized::File {
            own: keys[0],
            path: path.clone(),
        };
        let allowed = || {
            keys.iter()
                .map(|key| authorized.allows(key))
                .collect::<Vec<_>>()
        };
        assert_eq!(allowed(), [true, false, false, false]);

        assert!(Authorized::authorize(&path, &keys[1], "first\nsecond").unwrap());
        assert!(!Authorized::authorize(&path, &keys[1], "again").unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{} firstsecond\n", keys[1]));
        // By hand: comments, space, lines that are nothing, and no end of line.
        let (two, three) = (keys[2], keys[3]);
        let by_hand =
            format!("{text}# {three}\n\nssh-ed25519 AAAA x\n memfs-ed25519 \n  {two}\tx y");
        std::fs::write(&path, by_hand).unwrap();
        assert_eq!(allowed(), [true, true, true, false]);
        assert!(Authorized::authorize(&path, &three, "").unwrap());
        assert_eq!(allowed(), [true, true, true, true]);

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o620)).unwrap();
        assert_eq!(allowed(), [true, false, false, false]);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, vec![b'\n'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(allowed(), [true, false, false, false]);
        assert!(Authorized::authorize(&path, &three, "").is_err());
    }

    #[test]
    fn known_hosts_are_read_with_care() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known_hosts");
        let (own, key, other) = (
            Identity::generate().public(),
            Identity::generate().public(),
            Identity::generate().public(),
        );
        let check = |host: &str, key: &PublicKey| {
            let path = path.clone();
            let unknown = Unknown::Accept;
            ServerTrust::KnownHosts { own, path, unknown }.check(host, key)
        };
        std::fs::write(
            &path,
            format!("# old\nhost:1 {other}\nHost:1 {key}\nbad:1 rubbish"),
        )
        .unwrap();
        // Any of several is good, in any case of the name.
        assert_eq!(check("host:1", &key), Ok(()));
        assert_eq!(check("host:1", &other), Ok(()));
        let third = Identity::generate().public();
        let said = check("host:1", &third).unwrap_err();
        assert!(said.contains("HAS CHANGED"), "{said}");
        assert_eq!(check("host:1", &own), Ok(()));
        // A line for this host that cannot be read is no reason to take any key.
        let said = check("bad:1", &key).unwrap_err();
        assert!(said.contains("known_hosts:4: "), "{said}");
        // Another port is another server, and is added on a line of its own.
        assert_eq!(check("host:2", &key), Ok(()));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.ends_with(&format!("bad:1 rubbish\nhost:2 {key}\n")),
            "{text}"
        );
        assert!(check("host:2", &other).is_err());
    }

    #[test]
    fn all_who_remember_at_once_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memfs/known_hosts");
        let key = Identity::generate().public();
        std::thread::scope(|scope| {
            for n in 0..16 {
                let path = &path;
                scope.spawn(move || remember(path, &format!("host:{}", n % 8), &key).unwrap());
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 8, "{text}");
        for n in 0..8 {
            assert!(is_known(&path, &text, &format!("host:{n}"), &key).unwrap());
        }
    }
}
