//! Locks one by one, and random schedules against a model that looks at each byte.

use super::*;
use LockMode::{Exclusive, Shared};
use LockSpace::{Fcntl, Flock};
use proptest::prelude::*;

fn owner(client: u8, space: LockSpace, owner: u64) -> LockOwner {
    LockOwner {
        client: ClientId([client; 16]),
        key: LockKey { space, owner },
    }
}

fn ask(node: u8, owner: LockOwner, range: (u64, u64), mode: LockMode) -> LockRequest<u8> {
    LockRequest {
        node,
        owner,
        pid: owner.key.owner as u32,
        range: ByteRange::new(range.0, range.1),
        mode,
    }
}

const A: (u8, u64) = (1, 10);
const B: (u8, u64) = (2, 20);
const C: (u8, u64) = (3, 30);

fn fcntl(who: (u8, u64)) -> LockOwner {
    owner(who.0, Fcntl, who.1)
}

fn wait(outcome: LockOutcome) -> LockWait {
    match outcome {
        LockOutcome::Waits(wait) => wait,
        other => panic!("{other:?} instead of waiting"),
    }
}

#[test]
fn what_is_exclusive_is_not_shared() {
    let mut locks = Locks::default();
    let (a, b, c) = (fcntl(A), fcntl(B), fcntl(C));
    assert_eq!(
        locks.handle_lock(ask(1, a, (0, 10), Shared), false),
        LockOutcome::Held
    );
    assert_eq!(
        locks.handle_lock(ask(1, b, (5, 15), Shared), false),
        LockOutcome::Held
    );
    let want = ask(1, c, (9, 11), Exclusive);
    assert_eq!(locks.handle_lock(want, false), LockOutcome::Busy);
    assert_eq!(locks.in_the_way(&want), [a.client, b.client].into());
    let holder = locks.holder(&want).unwrap();
    assert_eq!(
        (holder.owner, holder.pid, holder.run.range()),
        (a, 10, ByteRange::new(0, 10))
    );
    // Other bytes, another file, the other space.
    for free in [
        ask(1, c, (15, u64::MAX), Exclusive),
        ask(2, c, (0, 10), Exclusive),
        ask(1, owner(3, Flock, 30), (0, u64::MAX), Exclusive),
    ] {
        assert_eq!(locks.handle_lock(free, false), LockOutcome::Held);
    }
    assert!(locks.handle_unlock(1, a, ByteRange::new(9, 10)));
    assert!(locks.handle_unlock(1, b, ByteRange::new(0, 11)));
    assert_eq!(locks.handle_lock(want, false), LockOutcome::Held);
}

#[test]
fn ranges_are_split_and_joined() {
    let mut runs = LockRuns::default();
    let set = |runs: &mut LockRuns, start, end, mode| runs.set(ByteRange::new(start, end), mode);
    set(&mut runs, 10, 20, Some(Exclusive));
    set(&mut runs, 20, 30, Some(Exclusive));
    assert_eq!(runs.runs().len(), 1);
    set(&mut runs, 14, 16, Some(Shared));
    set(&mut runs, 25, 26, None);
    let list: Vec<_> = runs
        .runs()
        .iter()
        .map(|run| (run.start, run.end, run.mode))
        .collect();
    let expected = [
        (10, 14, Exclusive),
        (14, 16, Shared),
        (16, 25, Exclusive),
        (26, 30, Exclusive),
    ];
    assert_eq!(list, expected);
    assert!(runs.holds(ByteRange::new(17, 25), Exclusive));
    assert!(!runs.holds(ByteRange::new(17, 27), Exclusive));
    set(&mut runs, 0, u64::MAX, Some(Shared));
    assert_eq!(runs.runs().len(), 1);
    set(&mut runs, 0, u64::MAX, None);
    assert!(runs.is_empty());
}

#[test]
fn who_waits_is_given_it_in_turn() {
    let mut locks = Locks::default();
    let (a, b, c) = (fcntl(A), fcntl(B), fcntl(C));
    locks.handle_lock(ask(1, a, (0, 10), Exclusive), false);
    let first = wait(locks.handle_lock(ask(1, b, (0, 5), Exclusive), true));
    let second = wait(locks.handle_lock(ask(1, c, (0, 10), Shared), true));
    let third = wait(locks.handle_lock(ask(1, owner(3, Fcntl, 31), (6, 7), Shared), true));
    assert_eq!(locks.waits_for(first), [a.client].into());
    assert_eq!(locks.poll_ended(), None);
    locks.handle_unlock(1, a, ByteRange::new(0, 8));
    assert_eq!(locks.poll_ended(), Some((first, LockOutcome::Held)));
    assert_eq!(locks.poll_ended(), Some((third, LockOutcome::Held)));
    assert_eq!(locks.poll_ended(), None);
    assert!(locks.handle_cancel(second) && !locks.handle_cancel(second));
    assert!(locks.handle_gone(b.client) && locks.handle_gone(a.client));
    assert_eq!(locks.poll_ended(), None, "it does not wait any more");
    assert!(locks.handle_gone(c.client) && !locks.handle_gone(c.client));
    assert!(locks.files.is_empty() && locks.clients.is_empty() && locks.waits_of.is_empty());
}

#[test]
fn a_circle_is_refused_across_files_and_clients() {
    let mut locks = Locks::default();
    let (a, b, c) = (fcntl(A), fcntl(B), fcntl(C));
    for (node, owner) in [(1, a), (2, b), (3, c)] {
        locks.handle_lock(ask(node, owner, (0, 1), Exclusive), false);
    }
    wait(locks.handle_lock(ask(2, a, (0, 1), Shared), true));
    let last = wait(locks.handle_lock(ask(3, b, (0, 1), Exclusive), true));
    let closing = ask(1, c, (0, u64::MAX), Shared);
    assert_eq!(locks.handle_lock(closing, true), LockOutcome::Deadlock);
    assert_eq!(locks.handle_lock(closing, false), LockOutcome::Busy);
    locks.handle_cancel(last);
    wait(locks.handle_lock(closing, true));
}

#[test]
fn a_flock_in_another_mode_is_given_up_before() {
    let mut locks = Locks::default();
    let (a, b) = (owner(1, Flock, 1), owner(2, Flock, 2));
    let whole = (0, u64::MAX);
    locks.handle_lock(ask(1, a, whole, Shared), true);
    locks.handle_lock(ask(1, b, whole, Shared), true);
    let first = wait(locks.handle_lock(ask(1, a, whole, Exclusive), true));
    // The second gives its own up, so the first gets what it wants, and no two wait for each other.
    let second = wait(locks.handle_lock(ask(1, b, whole, Exclusive), true));
    assert_eq!(locks.poll_ended(), Some((first, LockOutcome::Held)));
    locks.handle_unlock(1, a, EVERYTHING);
    assert_eq!(locks.poll_ended(), Some((second, LockOutcome::Held)));
}

#[test]
fn locks_are_claimed_again() {
    let mut locks = Locks::default();
    let (a, b) = (fcntl(A), fcntl(B));
    let runs = [
        LockRun {
            start: 0,
            end: 5,
            mode: Exclusive,
        },
        LockRun {
            start: 7,
            end: 9,
            mode: Shared,
        },
    ];
    assert!(!locks.handle_reclaim(1, a, 1, &runs, false));
    assert!(locks.handle_reclaim(1, a, 1, &runs, true));
    assert!(locks.handle_reclaim(1, a, 1, &runs, false), "is so still");
    assert!(!locks.handle_reclaim(1, b, 1, &runs, true));
    assert!(locks.handle_reclaim(1, b, 1, &runs[1..], true));
    locks.handle_gone(a.client);
    assert!(!locks.handle_reclaim(1, a, 1, &runs, false));
}

#[test]
fn nobody_holds_too_much() {
    let mut locks = Locks::default();
    let a = fcntl(A);
    for i in 0..LOCKS_CLIENT_MAX as u64 {
        let outcome = locks.handle_lock(ask(1, a, (2 * i, 2 * i + 1), Shared), false);
        assert_eq!(outcome, LockOutcome::Held);
    }
    let more = ask(2, a, (0, 1), Shared);
    assert_eq!(locks.handle_lock(more, false), LockOutcome::Full);
    assert!(locks.handle_unlock(1, a, EVERYTHING));
    assert_eq!(locks.handle_lock(more, false), LockOutcome::Held);
    locks.handle_lock(ask(3, fcntl(B), (0, 1), Exclusive), false);
    for i in 0..LOCK_WAITS_MAX as u64 {
        wait(locks.handle_lock(ask(3, owner(1, Fcntl, i), (0, 1), Shared), true));
    }
    assert_eq!(
        locks.handle_lock(ask(3, a, (0, 1), Shared), true),
        LockOutcome::Full
    );
}

/// Bytes of the files of the model.
const BYTES: u64 = 12;

/// What each owner holds of each byte of each file, and who waits.
#[derive(Default)]
struct Model {
    held: BTreeMap<(u8, LockOwner, u64), LockMode>,
    waits: Vec<(LockWait, LockRequest<u8>)>,
}

impl Model {
    fn blockers(&self, want: &LockRequest<u8>) -> BTreeSet<LockOwner> {
        let blocks = |(&(node, owner, byte), &mode): (&(u8, LockOwner, u64), &LockMode)| {
            let here = node == want.node && want.range.start <= byte && byte < want.range.end;
            let other = owner != want.owner && owner.key.space == want.owner.key.space;
            let hard = mode == Exclusive || want.mode == Exclusive;
            (here && other && hard).then_some(owner)
        };
        self.held.iter().filter_map(blocks).collect()
    }

    fn is_deadlock(&self, want: &LockRequest<u8>) -> bool {
        let mut reached = self.blockers(want);
        loop {
            let waiting = self
                .waits
                .iter()
                .filter(|(_, it)| reached.contains(&it.owner));
            let further: BTreeSet<_> = waiting.flat_map(|(_, it)| self.blockers(it)).collect();
            let before = reached.len();
            reached.extend(further);
            if reached.len() == before {
                return want.owner.key.space == Fcntl && reached.contains(&want.owner);
            }
        }
    }

    fn set(&mut self, want: &LockRequest<u8>, mode: Option<LockMode>) {
        for byte in want.range.start..want.range.end.min(BYTES) {
            let place = (want.node, want.owner, byte);
            match mode {
                Some(mode) => self.held.insert(place, mode),
                None => self.held.remove(&place),
            };
        }
    }

    /// Whose waits end now, and how.
    fn look_again(&mut self, node: u8, space: LockSpace) -> Vec<(LockWait, LockOutcome)> {
        let mut ended = Vec::new();
        loop {
            let before = ended.len();
            for (id, want) in self.waits.clone() {
                if (want.node, want.owner.key.space) != (node, space) {
                    continue;
                }
                let outcome = if self.blockers(&want).is_empty() {
                    self.set(&want, Some(want.mode));
                    LockOutcome::Held
                } else if self.is_deadlock(&want) {
                    LockOutcome::Deadlock
                } else {
                    continue;
                };
                self.waits.retain(|(other, _)| *other != id);
                ended.push((id, outcome));
            }
            if ended.len() == before {
                return ended;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Lock(LockRequest<u8>, bool),
    Unlock(LockRequest<u8>),
    Cancel(usize),
    Gone(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let who = (1..4u8, any::<bool>(), 1..3u64);
    let what = (1..3u8, 0..BYTES, 1..BYTES, any::<bool>());
    let request = (who, what).prop_map(|((client, flock, id), (node, start, len, shared))| {
        let range = match flock {
            true => (0, BYTES),
            false => (start, (start + len).min(BYTES)),
        };
        let owner = owner(client, if flock { Flock } else { Fcntl }, id);
        ask(node, owner, range, if shared { Shared } else { Exclusive })
    });
    let request = request.boxed();
    prop_oneof![
        6 => (request.clone(), any::<bool>()).prop_map(|(want, wait)| Step::Lock(want, wait)),
        4 => request.prop_map(Step::Unlock),
        1 => (0..8usize).prop_map(Step::Cancel),
        1 => (1..4u8).prop_map(Step::Gone),
    ]
}

/// Does a step in both, and compares what comes of it.
fn compare(locks: &mut Locks<u8>, model: &mut Model, step: &Step) {
    let mut expected = Vec::new();
    match step {
        Step::Lock(want, may_wait) => {
            let (node, space) = (want.node, want.owner.key.space);
            let bytes = want.range.start..want.range.end;
            let held = |byte| model.held.get(&(node, want.owner, byte)).copied();
            let some = bytes.clone().any(|byte| held(byte).is_some());
            let same = bytes.clone().all(|byte| held(byte) == Some(want.mode));
            if space == Flock && some && !same {
                model.set(want, None);
                expected.extend(model.look_again(node, space));
            }
            let outcome = locks.handle_lock(*want, *may_wait);
            if model.blockers(want).is_empty() {
                assert_eq!(outcome, LockOutcome::Held);
                model.set(want, Some(want.mode));
                expected.extend(model.look_again(node, space));
            } else if !may_wait {
                assert_eq!(outcome, LockOutcome::Busy);
            } else if model.is_deadlock(want) {
                assert_eq!(outcome, LockOutcome::Deadlock);
            } else {
                model.waits.push((wait(outcome), *want));
            }
        }
        Step::Unlock(want) => {
            assert!(locks.handle_unlock(want.node, want.owner, want.range));
            model.set(want, None);
            expected = model.look_again(want.node, want.owner.key.space);
        }
        Step::Cancel(which) => {
            if let Some(&(id, _)) = model.waits.get(*which) {
                assert!(locks.handle_cancel(id));
                model.waits.remove(*which);
            }
        }
        Step::Gone(client) => {
            let client = ClientId([*client; 16]);
            model.waits.retain(|(_, it)| it.owner.client != client);
            let held = model.held.keys();
            let held: Vec<_> = held.filter(|key| key.1.client == client).copied().collect();
            assert_eq!(locks.handle_gone(client), !held.is_empty());
            let files: BTreeSet<_> = held.iter().map(|key| (key.0, key.1.key.space)).collect();
            for (node, space) in files {
                let of = |key: &&(u8, LockOwner, u64)| key.0 == node && key.1.key.space == space;
                for key in held.iter().filter(of) {
                    model.held.remove(key);
                }
                expected.extend(model.look_again(node, space));
            }
        }
    }
    let ended: Vec<_> = std::iter::from_fn(|| locks.poll_ended()).collect();
    assert_eq!(ended, expected);
}

proptest! {
    #[test]
    fn locks_are_as_in_the_model(steps in prop::collection::vec(step(), 0..120)) {
        let (mut locks, mut model) = (Locks::default(), Model::default());
        for step in &steps {
            compare(&mut locks, &mut model, step);
            // Each byte is held by whom the model says, and by nobody else.
            let mut held = BTreeMap::new();
            for (&(node, _), file) in &locks.files {
                for (&owner, it) in &file.owners {
                    for run in it.runs.runs() {
                        held.extend((run.start..run.end).map(|byte| ((node, owner, byte), run.mode)));
                    }
                }
            }
            prop_assert_eq!(&held, &model.held);
            let runs: usize = locks.files.values().map(|file| file.runs).sum();
            prop_assert_eq!(runs, locks.clients.values().map(|client| client.runs).sum::<usize>());
        }
    }
}
