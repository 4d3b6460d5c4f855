//! Who has locked which bytes of which file, who waits, and for whom.
//!
//! ```text
//! handle_lock ─┬─ nobody else's lock is in the way ──▶ Held
//!              ├─ one is, and the owner will not wait ─▶ Busy
//!              ├─ one is, and waiting would never end ─▶ Deadlock
//!              └─ one is ──▶ Waits ──┬─ unlocked, or its client gone ─▶ poll_ended: Held
//!                                    ├─ would never end any more ─────▶ poll_ended: Deadlock
//!                                    └─ handle_cancel
//! ```
//!
//! `flock(2)` and `fcntl(2)` locks ([`LockSpace`]) do not see each other, as on Linux. A lock in another mode
//! replaces what the owner held of these bytes. With `fcntl` it does so when it is had; with `flock` what was
//! held is given up before, so that two owners who both want more than to share do not wait for each other.
//!
//! Who waits longest is looked at first when something is unlocked. One that does not have to wait does not queue up
//! behind those who do.
//!
//! **Deadlocks** (`fcntl` only): an owner waits for each owner whose lock is in the way, and each of those for others.
//! If the one who is about to wait is among them, it is refused. Owners are told apart by their client, so this goes
//! across files and clients.

mod runs;
#[cfg(test)]
mod tests;

pub use runs::{LockRun, LockRuns};

use super::ClientId;
use crate::units::ByteRange;
use bincode::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// Runs that one client may hold, and requests of it that may wait.
pub const LOCKS_CLIENT_MAX: usize = 32_768;
/// Runs that may be held of one file.
pub const LOCKS_FILE_MAX: usize = 32_768;
/// Requests of one client that may wait at one time.
pub const LOCK_WAITS_MAX: usize = 1024;

/// How something is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub enum LockMode {
    /// Others may share it.
    Shared,
    /// Nobody else may have any.
    Exclusive,
}

/// What kind of lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub enum LockSpace {
    /// `flock(2)`: an owner is an open file.
    Flock,
    /// `fcntl(2)`: an owner is a process, or an open file (`F_OFD_SETLK`).
    Fcntl,
}

/// An owner of locks, as its client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct LockKey {
    /// Which locks.
    pub space: LockSpace,
    /// Tells owners of one client and space apart.
    pub owner: u64,
}

/// An owner of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockOwner {
    /// Its client.
    pub client: ClientId,
    /// As that one names it.
    pub key: LockKey,
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest<Node> {
    /// The file.
    pub node: Node,
    /// For whom.
    pub owner: LockOwner,
    /// The process that asks, to be told to others.
    pub pid: u32,
    /// Not empty.
    pub range: ByteRange,
    /// How.
    pub mode: LockMode,
}

/// Names a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockWait(u64);

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOutcome {
    /// The lock is had.
    Held,
    /// Somebody else's is in the way.
    Busy,
    /// [`Locks::poll_ended`] will tell.
    Waits(LockWait),
    /// It would wait for somebody who waits for it.
    Deadlock,
    /// Too many locks, or too many that wait.
    Full,
}

/// A lock that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Whose.
    pub owner: LockOwner,
    /// Which process, as its client counts.
    pub pid: u32,
    /// Of which bytes and how.
    pub run: LockRun,
}

#[derive(Debug)]
struct File {
    owners: BTreeMap<LockOwner, Held>,
    /// Oldest first.
    waits: BTreeSet<LockWait>,
    /// Of all owners.
    runs: usize,
}

#[derive(Debug)]
struct Held {
    pid: u32,
    runs: LockRuns,
}

#[derive(Debug, Default)]
struct Client {
    runs: usize,
    waits: usize,
}

/// The locks of one authority.
#[derive(Debug)]
pub struct Locks<Node> {
    files: BTreeMap<(Node, LockSpace), File>,
    waits: BTreeMap<LockWait, LockRequest<Node>>,
    /// What an owner waits for.
    waits_of: HashMap<LockOwner, BTreeSet<LockWait>>,
    clients: HashMap<ClientId, Client>,
    next_wait: u64,
    ended: VecDeque<(LockWait, LockOutcome)>,
}

impl<Node> Default for Locks<Node> {
    fn default() -> Self {
        Locks {
            files: BTreeMap::new(),
            waits: BTreeMap::new(),
            waits_of: HashMap::new(),
            clients: HashMap::new(),
            next_wait: 0,
            ended: VecDeque::new(),
        }
    }
}

impl<Node: Copy + Ord + Hash> Locks<Node> {
    /// Somebody wants a lock, and may be willing to wait for it.
    pub fn handle_lock(&mut self, request: LockRequest<Node>, wait: bool) -> LockOutcome {
        if request.range.is_empty() {
            return LockOutcome::Held;
        }
        self.give_up_flock(&request);
        if !self.is_blocked(&request) {
            return self.take(&request);
        }
        if !wait {
            return LockOutcome::Busy;
        }
        if self.is_deadlock(&request) {
            return LockOutcome::Deadlock;
        }
        let client = self.clients.entry(request.owner.client).or_default();
        if client.waits >= LOCK_WAITS_MAX {
            return LockOutcome::Full;
        }
        client.waits += 1;
        let id = LockWait(self.next_wait);
        self.next_wait += 1;
        self.waits.insert(id, request);
        let of_owner = self.waits_of.entry(request.owner).or_default();
        of_owner.insert(id);
        let file = self.files.get_mut(&place(&request));
        // It is there: something in it blocks.
        file.into_iter().for_each(|file| {
            file.waits.insert(id);
        });
        LockOutcome::Waits(id)
    }

    /// Gives up what is held of a range. `false` where that would make too many runs of it.
    pub fn handle_unlock(&mut self, node: Node, owner: LockOwner, range: ByteRange) -> bool {
        let done = self.set(node, owner, None, range, None);
        self.look_again(node, owner.key.space);
        done
    }

    /// A request waits no longer. False if it had ended before.
    pub fn handle_cancel(&mut self, wait: LockWait) -> bool {
        let Some(request) = self.end_wait(wait) else {
            return false;
        };
        self.drop_if_idle(place(&request));
        true
    }

    /// A client is gone: its locks are free, and what it waited for is not wanted any more. Whether it held any.
    pub fn handle_gone(&mut self, client: ClientId) -> bool {
        let of_client =
            |(_, request): &(&LockWait, &LockRequest<Node>)| request.owner.client == client;
        let waits = self.waits.iter().filter(of_client);
        let waits: Vec<LockWait> = waits.map(|(&id, _)| id).collect();
        for id in waits {
            self.handle_cancel(id);
        }
        let first = LockOwner {
            client,
            key: LockKey {
                space: LockSpace::Flock,
                owner: 0,
            },
        };
        let owners_of = |file: &File| -> Vec<LockOwner> {
            let owners = file.owners.range(first..).map(|(&owner, _)| owner);
            owners.take_while(|owner| owner.client == client).collect()
        };
        let held = self.files.iter().map(|(&at, file)| (at, owners_of(file)));
        let held: Vec<_> = held.filter(|(_, owners)| !owners.is_empty()).collect();
        for ((node, space), owners) in &held {
            for &owner in owners {
                self.set(*node, owner, None, EVERYTHING, None);
            }
            self.look_again(*node, *space);
        }
        self.clients.remove(&client);
        !held.is_empty()
    }

    /// A client that has come again says what an owner held. Whether it is so still; with `take`, it is made so where
    /// nobody else's lock is in the way.
    pub fn handle_reclaim(
        &mut self,
        node: Node,
        owner: LockOwner,
        pid: u32,
        runs: &[LockRun],
        take: bool,
    ) -> bool {
        let request = |run: &LockRun| LockRequest {
            node,
            owner,
            pid,
            range: run.range(),
            mode: run.mode,
        };
        let file = self.files.get(&(node, owner.key.space));
        let held = file.and_then(|file| file.owners.get(&owner));
        let is_held =
            |run: &LockRun| held.is_some_and(|held| held.runs.holds(run.range(), run.mode));
        if runs.iter().all(is_held) {
            return true;
        }
        take && !runs.iter().any(|run| self.is_blocked(&request(run)))
            && (runs.iter()).all(|run| self.take(&request(run)) == LockOutcome::Held)
    }

    /// A lock that is in the way of a request.
    pub fn holder(&self, request: &LockRequest<Node>) -> Option<LockHolder> {
        self.holders(request).next()
    }

    /// Whose locks are in the way of a request that waits.
    pub fn waits_for(&self, wait: LockWait) -> BTreeSet<ClientId> {
        let request = self.waits.get(&wait);
        let holders = request
            .into_iter()
            .flat_map(|request| self.holders(request));
        holders.map(|holder| holder.owner.client).collect()
    }

    /// Whose locks are in the way of a request.
    pub fn in_the_way(&self, request: &LockRequest<Node>) -> BTreeSet<ClientId> {
        let holders = self.holders(request);
        holders.map(|holder| holder.owner.client).collect()
    }

    /// Whether a request waits, or [`Locks::poll_ended`] is still to tell of it.
    pub fn is_known(&self, wait: LockWait) -> bool {
        self.waits.contains_key(&wait) || self.ended.iter().any(|(ended, _)| *ended == wait)
    }

    /// A request that waited has ended.
    pub fn poll_ended(&mut self) -> Option<(LockWait, LockOutcome)> {
        self.ended.pop_front()
    }

    /// All locks in the way of a request, one of each owner.
    fn holders(&self, request: &LockRequest<Node>) -> impl Iterator<Item = LockHolder> {
        let LockRequest { range, mode, .. } = *request;
        let own = request.owner;
        let file = self.files.get(&place(request));
        let owners = file.into_iter().flat_map(|file| &file.owners);
        let others = owners.filter(move |(owner, _)| **owner != own);
        others.filter_map(move |(&owner, held)| {
            let run = *held.runs.conflict(range, mode)?;
            let pid = held.pid;
            Some(LockHolder { owner, pid, run })
        })
    }

    fn is_blocked(&self, request: &LockRequest<Node>) -> bool {
        self.holders(request).next().is_some()
    }

    /// See the module.
    fn is_deadlock(&self, request: &LockRequest<Node>) -> bool {
        if request.owner.key.space != LockSpace::Fcntl {
            return false;
        }
        let mut seen = HashSet::new();
        let mut ahead: Vec<LockOwner> = self.holders(request).map(|it| it.owner).collect();
        while let Some(owner) = ahead.pop() {
            if owner == request.owner {
                return true;
            }
            if !seen.insert(owner) {
                continue;
            }
            let waits = self.waits_of.get(&owner).into_iter().flatten();
            let requests = waits.filter_map(|wait| self.waits.get(wait));
            ahead.extend(requests.flat_map(|it| self.holders(it).map(|holder| holder.owner)));
        }
        false
    }

    /// A `flock` in another mode begins with giving up what is held.
    fn give_up_flock(&mut self, request: &LockRequest<Node>) {
        let LockRequest {
            node, owner, range, ..
        } = *request;
        let file = self.files.get(&place(request));
        let held = file.and_then(|file| file.owners.get(&owner));
        let other = held.is_some_and(|held| !held.runs.holds(range, request.mode));
        if owner.key.space == LockSpace::Flock && other {
            self.handle_unlock(node, owner, range);
        }
    }

    /// Nothing is in the way.
    fn take(&mut self, request: &LockRequest<Node>) -> LockOutcome {
        let LockRequest {
            node,
            owner,
            pid,
            range,
            mode,
        } = *request;
        if !self.set(node, owner, Some(pid), range, Some(mode)) {
            return LockOutcome::Full;
        }
        // It may have been exclusive before.
        self.look_again(node, owner.key.space);
        LockOutcome::Held
    }

    fn set(
        &mut self,
        node: Node,
        owner: LockOwner,
        pid: Option<u32>,
        range: ByteRange,
        mode: Option<LockMode>,
    ) -> bool {
        let at = (node, owner.key.space);
        if mode.is_none() && !self.files.contains_key(&at) {
            return true;
        }
        let file = self.files.entry(at).or_insert(File {
            owners: BTreeMap::new(),
            waits: BTreeSet::new(),
            runs: 0,
        });
        let client = self.clients.entry(owner.client).or_default();
        let held = file.owners.entry(owner).or_insert(Held {
            pid: 0,
            runs: LockRuns::default(),
        });
        let growth = held.runs.growth(range, mode);
        let (in_file, in_client) = (
            file.runs.saturating_add_signed(growth),
            client.runs.saturating_add_signed(growth),
        );
        let fits = growth <= 0 || in_file <= LOCKS_FILE_MAX && in_client <= LOCKS_CLIENT_MAX;
        if fits {
            held.runs.set(range, mode);
            held.pid = pid.unwrap_or(held.pid);
            (file.runs, client.runs) = (in_file, in_client);
        }
        if held.runs.is_empty() {
            file.owners.remove(&owner);
        }
        if client.runs == 0 && client.waits == 0 {
            self.clients.remove(&owner.client);
        }
        self.drop_if_idle(at);
        fits
    }

    /// Something of a file may be free now. Again and again: a lock that is had may be less than what its owner held.
    fn look_again(&mut self, node: Node, space: LockSpace) {
        while self.look_once(node, space) {}
        self.drop_if_idle((node, space));
    }

    /// Whether anybody who waited has got a lock.
    fn look_once(&mut self, node: Node, space: LockSpace) -> bool {
        let waits = self.files.get(&(node, space)).map(|file| &file.waits);
        let Some(waits) = waits.filter(|waits| !waits.is_empty()) else {
            return false;
        };
        let mut any = false;
        for id in waits.clone() {
            let Some(request) = self.waits.get(&id).copied() else {
                continue;
            };
            let (owner, range) = (request.owner, request.range);
            let outcome = if !self.is_blocked(&request) {
                match self.set(node, owner, Some(request.pid), range, Some(request.mode)) {
                    true => LockOutcome::Held,
                    false => LockOutcome::Full,
                }
            } else if self.is_deadlock(&request) {
                LockOutcome::Deadlock
            } else {
                continue;
            };
            any |= outcome == LockOutcome::Held;
            self.end_wait(id);
            self.ended.push_back((id, outcome));
        }
        any
    }

    fn end_wait(&mut self, id: LockWait) -> Option<LockRequest<Node>> {
        let request = self.waits.remove(&id)?;
        let LockOwner { client, .. } = request.owner;
        if let Some(file) = self.files.get_mut(&place(&request)) {
            file.waits.remove(&id);
        }
        if let Some(waits) = self.waits_of.get_mut(&request.owner) {
            waits.remove(&id);
            if waits.is_empty() {
                self.waits_of.remove(&request.owner);
            }
        }
        if let Some(known) = self.clients.get_mut(&client) {
            known.waits = known.waits.saturating_sub(1);
            if known.runs == 0 && known.waits == 0 {
                self.clients.remove(&client);
            }
        }
        Some(request)
    }

    fn drop_if_idle(&mut self, at: (Node, LockSpace)) {
        let idle = |file: &File| file.owners.is_empty() && file.waits.is_empty();
        if self.files.get(&at).is_some_and(idle) {
            self.files.remove(&at);
        }
    }
}

/// All of a file.
const EVERYTHING: ByteRange = ByteRange {
    start: 0,
    end: u64::MAX,
};

fn place<Node: Copy>(request: &LockRequest<Node>) -> (Node, LockSpace) {
    (request.node, request.owner.key.space)
}
