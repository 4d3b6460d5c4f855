//! What one key may take of what there is for all: whoever holds one cannot keep the others out, nor take
//! memory without end.
//!
//! | of | all together | one key |
//! |---|---|---|
//! | connections that have not been let in | [`GREETINGS_MAX`] | [`GREETINGS_PER_KEY_MAX`] |
//! | sessions | [`super::CLIENTS_MAX`] | [`SESSIONS_PER_KEY_MAX`] |
//! | parts of the tree that are watched | | [`PARTS_PER_KEY_MAX`] |
//! | calls to the store that may take long | [`super::CALLS_MAX`] | [`CALLS_PER_KEY_MAX`] |
//! | open files | what the process may open, but for [`DESCRIPTORS_KEPT`] | half of that |
//! | bytes on their way, of each kind | | [`ROOM_BYTES`], shared by its connected sessions; see [`room`] |

use crate::store::Errno;
use crate::transport::PublicKey;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at one time that have not been let in.
const GREETINGS_MAX: usize = 256;
const GREETINGS_PER_KEY_MAX: usize = 32;
/// Sessions of one key.
pub(super) const SESSIONS_PER_KEY_MAX: usize = 256;
/// Parts of what is served that the sessions of one key have as their roots: each takes an instance of inotify,
/// of which a user has 128.
pub(super) const PARTS_PER_KEY_MAX: usize = 48;
const CALLS_PER_KEY_MAX: usize = 64;
/// Files that can always be opened beside those that replicas have open; half of all where there are few.
const DESCRIPTORS_KEPT: usize = 768;
/// Bytes that are received, or sent, or pushed, or pulled, for the sessions of a key.
const ROOM_BYTES: usize = 128 << 20;
/// Of those, one session never has more, nor less.
const ROOM_OF_ONE_BYTES_MAX: usize = 64 << 20;
const ROOM_OF_ONE_BYTES_MIN: usize = 4 << 20;

/// How many bytes of each kind the session of a key may have on their way that is the `nth` to be connected,
/// from 1. What others have is not taken from them, so that all have at most [`ROOM_BYTES`] times the logarithm of
/// their number, or the least for each.
pub(super) fn room(nth: usize) -> usize {
    (ROOM_BYTES / nth.max(1)).clamp(ROOM_OF_ONE_BYTES_MIN, ROOM_OF_ONE_BYTES_MAX)
}

// A push, and what is read at a time for a pull of either kind, have room.
const _: () = assert!(ROOM_OF_ONE_BYTES_MIN as u64 >= crate::wire::TRANSFER_BYTES_MAX);
const _: () = assert!(ROOM_OF_ONE_BYTES_MIN as u64 >= 2 * super::pull::BATCH_BYTES);

/// What the sessions and connections of one key have in common.
pub(super) struct Share {
    greetings: Arc<Semaphore>,
    handles: Arc<Semaphore>,
    /// One permit a call to the store that may take long.
    pub calls: Semaphore,
    all: Arc<All>,
}

/// What is left of what there is for all.
struct All {
    greetings: Arc<Semaphore>,
    handles: Arc<Semaphore>,
}

/// Taken from a share; given back when dropped.
pub(super) type Taken = [OwnedSemaphorePermit; 2];

impl Share {
    /// For a connection that is not let in yet; `None` where there are too many of them.
    pub fn greeting(&self) -> Option<Taken> {
        take(&self.greetings, &self.all.greetings)
    }

    /// For an open file. `EMFILE` where the clients of this key have too many, `ENFILE` where all have.
    pub fn handle(&self) -> Result<Taken, Errno> {
        match take(&self.handles, &self.all.handles) {
            Some(taken) => Ok(taken),
            None if self.handles.available_permits() == 0 => Err(Errno::MFILE),
            None => Err(Errno::NFILE),
        }
    }
}

fn take(own: &Arc<Semaphore>, all: &Arc<Semaphore>) -> Option<Taken> {
    let take = |from: &Arc<Semaphore>| from.clone().try_acquire_owned().ok();
    Some([take(own)?, take(all)?])
}

/// The shares of the keys that are in use.
pub(super) struct Shares {
    all: Arc<All>,
    handles_max: usize,
    table: Mutex<HashMap<PublicKey, Weak<Share>>>,
}

impl Shares {
    pub fn new() -> Shares {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let most = Semaphore::MAX_PERMITS;
        let handles_max = limit.map_or(most, |limit| limit - DESCRIPTORS_KEPT.min(limit / 2));
        let handles_max = handles_max.clamp(2, most);
        Shares {
            all: Arc::new(All {
                greetings: Arc::new(Semaphore::new(GREETINGS_MAX)),
                handles: Arc::new(Semaphore::new(handles_max)),
            }),
            handles_max,
            table: Mutex::default(),
        }
    }

    /// Open files that the clients of one key may have.
    pub fn handles_per_key_max(&self) -> usize {
        self.handles_max / 2
    }

    /// The share of a key.
    pub fn of(&self, key: PublicKey) -> Arc<Share> {
        let mut table = self.table.lock();
        if let Some(share) = table.get(&key).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Share {
            greetings: Arc::new(Semaphore::new(GREETINGS_PER_KEY_MAX)),
            handles: Arc::new(Semaphore::new(self.handles_per_key_max())),
            calls: Semaphore::new(CALLS_PER_KEY_MAX),
            all: self.all.clone(),
        });
        table.retain(|_, share| share.strong_count() > 0);
        table.insert(key, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Identity;

    #[test]
    fn no_key_takes_what_others_need() {
        let shares = Shares::new();
        let [one, other] = [(); 2].map(|()| shares.of(Identity::generate().public()));
        let greetings: Vec<_> = std::iter::from_fn(|| one.greeting()).collect();
        assert_eq!(greetings.len(), GREETINGS_PER_KEY_MAX);
        assert!(other.greeting().is_some());
        drop(greetings);
        assert!(one.greeting().is_some());
        let handles: Vec<_> = std::iter::from_fn(|| one.handle().ok()).collect();
        assert_eq!(handles.len(), shares.handles_per_key_max());
        assert_eq!(one.handle().err(), Some(Errno::MFILE));
        assert!(other.handle().is_ok());
        let rest: Vec<_> = std::iter::from_fn(|| other.handle().ok()).collect();
        let third = shares.of(Identity::generate().public());
        assert!(
            handles.len() + rest.len() < shares.handles_max
                || third.handle().err() == Some(Errno::NFILE)
        );
    }

    #[test]
    fn a_key_has_one_share() {
        let shares = Shares::new();
        let key = Identity::generate().public();
        let one = shares.of(key);
        assert!(Arc::ptr_eq(&one, &shares.of(key)));
        drop(one);
        shares.of(Identity::generate().public());
        assert_eq!(shares.table.lock().len(), 1);
    }

    #[test]
    fn all_rooms_together_are_bounded() {
        let all: usize = (1..=SESSIONS_PER_KEY_MAX).map(room).sum();
        assert!(all < 2 << 30, "{all}");
        assert_eq!((room(1), room(2)), (64 << 20, 64 << 20));
        assert_eq!((room(20), room(1000)), (ROOM_BYTES / 20, 4 << 20));
    }
}
