//! `known_hosts`, `authorized_keys`, and asking on a terminal.
//!
//! Both are text, one key a line; empty lines and those that begin with `#` are skipped:
//!
//! ```text
//! authorized_keys    [options] memfs-ed25519 BASE64 [comment]      options: see `grant`
//! known_hosts        HOST:PORT memfs-ed25519 BASE64
//! ```
//!
//! They are read whenever they are needed, and written by appending one line under a lock. Whatever
//! cannot be read lets nobody in.

use super::key::{config_file, make_directory_for};
use super::{Grant, KeyError, PublicKey};
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
        /// `authorized_keys`: one `[options] memfs-ed25519 BASE64 [comment]` a line, `#` comments.
        path: PathBuf,
    },
}

impl Authorized {
    /// What `key` is let in for now; `None` where it is not. Reads the file anew. Of several lines with the key the
    /// first counts.
    pub fn grant(&self, key: &PublicKey) -> Option<Grant> {
        match self {
            Authorized::Keys(keys) => keys.contains(key).then(Grant::default),
            Authorized::File { own, .. } if own == key => Some(Grant::default()),
            Authorized::File { path, .. } => match read_authorized(path) {
                Ok(text) => find(path, &text, key).map(|(_, grant)| grant),
                Err(error) => {
                    tracing::warn!("{error}: only the server's own key is let in");
                    None
                }
            },
        }
    }

    /// What is wrong with the file: a line each, which names the file and what is allowed.
    pub fn complaints(&self) -> Vec<String> {
        let Authorized::File { path, .. } = self else {
            return Vec::new();
        };
        match read_authorized(path) {
            Ok(text) => entries(path, &text).filter_map(Result::err).collect(),
            Err(error) => vec![format!("{error}: only the server's own key is let in")],
        }
    }

    /// Adds a key to a file of authorized keys, made (0600) if there is none; false if it was there.
    ///
    /// # Errors
    /// [`KeyError`]; also where the key is let in for something else, which only who wrote that can change.
    pub fn authorize(
        path: &Path,
        key: &PublicKey,
        grant: &Grant,
        comment: &str,
    ) -> Result<bool, KeyError> {
        let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
        let line = format!("{grant} {key} {comment}");
        append(path, line.trim_ascii(), |text| {
            match find(path, text, key) {
                Some((number, found)) if found != *grant => {
                    let found = match found.to_string() {
                        options if options.is_empty() => "without options".into(),
                        options => format!("with the options {options}"),
                    };
                    let what =
                        format!("line {number} has this key {found}: change or remove that line");
                    Err(KeyError::content(path, what))
                }
                found => Ok(found.is_some()),
            }
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

/// The text of a file that says who is let in, which nobody but this user and root may change.
fn read_authorized(path: &Path) -> Result<String, KeyError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        opened => opened.map_err(KeyError::file(path))?,
    };
    let meta = file.metadata().map_err(KeyError::file(path))?;
    let refused = |what: String| Err(KeyError::content(path, what));
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return refused(format!(
            "others can change this file (mode {mode:04o}): 'chmod go-w' it"
        ));
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&meta.uid()) {
        return refused(format!("this file belongs to user {}", meta.uid()));
    }
    let beside = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let mode = beside.metadata().map_err(KeyError::file(beside))?.mode();
    // In a sticky one nobody can put another file in the place of this one.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        let (beside, mode) = (beside.display(), mode & 0o7777);
        return refused(format!(
            "others can replace this file: 'chmod go-w {beside}' (mode {mode:04o})"
        ));
    }
    read(path, &file)
}

/// The lines of `authorized_keys`: their number, the key and what it is let in for, or what is wrong.
fn entries(
    path: &Path,
    text: &str,
) -> impl Iterator<Item = Result<(usize, PublicKey, Grant), String>> {
    lines(text).map(move |(number, line)| match Grant::parse_line(line) {
        Ok((key, grant)) => Ok((number, key, grant)),
        Err(what) => {
            let path = path.display();
            Err(format!("{path}:{number}: {what}; this line lets nobody in"))
        }
    })
}

/// The first line with this key. Lines before it that would have it, were they right, are logged: those of
/// others are not, so that nobody fills the log by coming again and again.
fn find(path: &Path, text: &str, key: &PublicKey) -> Option<(usize, Grant)> {
    let shown = key.to_string();
    let base64 = shown.rsplit(' ').next().unwrap_or_default();
    for ((_, line), entry) in lines(text).zip(entries(path, text)) {
        match entry {
            Ok((number, listed, grant)) if listed == *key => return Some((number, grant)),
            Err(what) if line.contains(base64) => tracing::warn!("{what}"),
            _ => {}
        }
    }
    None
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
    use crate::wire::RelPath;
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
                .map(|key| authorized.grant(key).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(allowed(), [true, false, false, false]);

        let whole = Grant::default();
        assert!(Authorized::authorize(&path, &keys[1], &whole, "first\nsecond").unwrap());
        assert!(!Authorized::authorize(&path, &keys[1], &whole, "again").unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{} firstsecond\n", keys[1]));
        // By hand: comments, space, lines that are nothing, and no end of line.
        let (two, three) = (keys[2], keys[3]);
        let by_hand =
            format!("{text}# {three}\n\nssh-ed25519 AAAA x\n memfs-ed25519 \n  {two}\tx y");
        std::fs::write(&path, by_hand).unwrap();
        assert_eq!(allowed(), [true, true, true, false]);
        assert!(Authorized::authorize(&path, &three, &whole, "").unwrap());
        assert_eq!(allowed(), [true, true, true, true]);

        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o620)).unwrap();
        assert_eq!(allowed(), [true, false, false, false]);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let beside = path.parent().unwrap();
        for (mode, found) in [
            (0o770, false),
            (0o1777, true),
            (0o702, false),
            (0o755, true),
        ] {
            std::fs::set_permissions(beside, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(allowed()[1], found, "{mode:o}");
            let complaints = if found { 2 } else { 1 };
            assert_eq!(authorized.complaints().len(), complaints);
        }
        std::fs::write(&path, vec![b'\n'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(allowed(), [true, false, false, false]);
        assert!(Authorized::authorize(&path, &three, &whole, "").is_err());
    }

    #[test]
    fn options_restrict_their_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authorized_keys");
        let keys: Vec<PublicKey> = (0..4).map(|_| Identity::generate().public()).collect();
        let (own, part, other, wrong) = (keys[0], keys[1], keys[2], keys[3]);
        let authorized = Authorized::File {
            own,
            path: path.clone(),
        };
        let whole = Grant::default();
        let below = Grant {
            read_only: true,
            subtree: RelPath::new("a \"b\"").unwrap(),
        };
        for (key, grant) in [(part, &below), (other, &whole), (own, &below)] {
            assert!(Authorized::authorize(&path, &key, grant, "x").unwrap());
            assert!(!Authorized::authorize(&path, &key, grant, "x").unwrap());
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let first = format!("read-only,subtree=\"a \\\"b\\\"\" {part} x\n");
        assert!(text.starts_with(&first), "{text}");
        assert!(authorized.complaints().is_empty());
        let said = Authorized::authorize(&path, &part, &whole, "").unwrap_err();
        assert!(
            said.to_string().contains("line 1 has this key with"),
            "{said}"
        );
        let said = Authorized::authorize(&path, &other, &below, "").unwrap_err();
        assert!(
            said.to_string().contains("line 2 has this key without"),
            "{said}"
        );

        // A line that is wrong lets nobody in, and the first of several that are right counts.
        let by_hand = format!("{text}read_only {wrong}\n{part}\n");
        std::fs::write(&path, by_hand).unwrap();
        assert_eq!(authorized.grant(&part), Some(below));
        assert_eq!(authorized.grant(&other), Some(whole.clone()));
        assert_eq!(authorized.grant(&own), Some(whole));
        assert_eq!(authorized.grant(&wrong), None);
        let said = authorized.complaints();
        let place = format!("{}:4: no option 'read_only': allowed are", path.display());
        assert!(said.len() == 1 && said[0].starts_with(&place), "{said:?}");
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
