//! A note for the next run of who holds leases of this one.
//!
//! ```text
//! memfs leases 1
//! 0123456789abcdef0123456789abcdef      a replica each
//! ```
//!
//! It is written before a replica is let in. Its time of last change is kept younger than the newest lease, so
//! whoever finds it knows until when the replicas in it may answer from their copies. It is not made durable: a
//! machine takes longer to come up again than a lease lasts.

use crate::region::ClientId;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const HEADING: &str = "memfs leases 1";
/// How often its time is renewed.
pub(super) const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// How much older it may be than the newest lease.
const SLACK: Duration = Duration::from_secs(2);
/// No note is longer.
const BYTES_MAX: u64 = 1 << 20;

/// The note of this run.
pub(super) struct Leases {
    path: PathBuf,
    noted: BTreeSet<ClientId>,
}

/// What the run before has granted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub until: Instant,
    pub clients: Vec<ClientId>,
}

impl Leases {
    /// A note at `path`, and what the one found there says.
    pub fn open(path: &Path, lease: Duration) -> (Leases, Option<Granted>) {
        let granted = match read(path) {
            Ok((clients, age)) => {
                let left = (lease + SLACK).saturating_sub(age);
                (!clients.is_empty() && !left.is_zero()).then(|| Granted {
                    until: Instant::now() + left,
                    clients,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!("{}: {error}", path.display());
                None
            }
        };
        let leases = Leases {
            path: path.to_owned(),
            noted: BTreeSet::new(),
        };
        (leases, granted)
    }

    /// These replicas may hold leases now.
    ///
    /// # Errors
    /// Where it cannot be written; then the next run does not wait for them.
    pub fn note(&mut self, clients: BTreeSet<ClientId>) -> io::Result<()> {
        if clients.is_empty() {
            self.noted = clients;
            return match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        if clients == self.noted {
            let file = File::options().write(true).open(&self.path)?;
            return file.set_modified(SystemTime::now());
        }
        let mut text = format!("{HEADING}\n");
        for ClientId(bytes) in &clients {
            text.extend(bytes.iter().map(|byte| format!("{byte:02x}")));
            text.push('\n');
        }
        let new = self.path.with_extension("new");
        File::create(&new)?.write_all(text.as_bytes())?;
        std::fs::rename(&new, &self.path)?;
        self.noted = clients;
        Ok(())
    }
}

/// The replicas of a note and its age.
fn read(path: &Path) -> io::Result<(Vec<ClientId>, Duration)> {
    let file = File::open(path)?;
    let modified = file.metadata()?.modified()?;
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text)?;
    let mut lines = text.lines();
    if lines.next() != Some(HEADING) {
        return Err(io::Error::other("not a note of leases"));
    }
    // A line that is none is one that was not written to its end.
    let clients = lines.filter_map(parse).collect();
    // A clock that was set back: as if it were new.
    Ok((clients, modified.elapsed().unwrap_or_default()))
}

fn parse(line: &str) -> Option<ClientId> {
    let number = u128::from_str_radix(line, 16).ok()?;
    (line.len() == 32).then(|| ClientId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const A: ClientId = ClientId([0xa; 16]);
    const B: ClientId = ClientId([0xb; 16]);

    #[test]
    fn what_is_noted_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases");
        let (mut leases, granted) = Leases::open(&path, LEASE);
        assert_eq!(granted, None);
        leases.note([A].into()).unwrap();
        leases.note([A, B].into()).unwrap();
        leases.note([A, B].into()).unwrap();
        let granted = Leases::open(&path, LEASE).1.unwrap();
        assert_eq!(granted.clients, [A, B]);
        assert!(granted.until <= Instant::now() + LEASE + SLACK);
        leases.note(BTreeSet::new()).unwrap();
        assert!(!path.exists());
        assert_eq!(Leases::open(&path, LEASE).1, None);
    }

    #[test]
    fn an_old_note_and_one_that_is_none_hold_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases");
        let (mut leases, _) = Leases::open(&path, LEASE);
        leases.note([A].into()).unwrap();
        let long_ago = SystemTime::now() - LEASE - SLACK;
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(long_ago).unwrap();
        assert_eq!(Leases::open(&path, LEASE).1, None);
        for text in ["", "memfs leases 1\nxyz\n0a\n", "\u{1F600}"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Leases::open(&path, LEASE).1, None);
        }
        std::fs::write(&path, [0xff; 99]).unwrap();
        assert_eq!(Leases::open(&path, LEASE).1, None);
    }
}
