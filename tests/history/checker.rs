//! Whether what was read keeps to the promises, given all that was stored, synced and read, and when.
//!
//! A page is one value here; each store writes one that nobody has written before. A mount is one memory: its threads,
//! calls and mappings share it.
//!
//! ```text
//! store a ──┤                               a is past:  b began after a, on the same mount; or after a was synced
//!      sync ├──┤   store b ──┤               b counts:   b was synced before the read began; or the mount that reads has
//!                      sync ├──┤  read ─┤               stored b, or has read b, before
//! ```
//!
//! What is past for a store that counts must not be read. What was stored at the same time as that, or had not
//! been synced when it was stored, may: the last push wins, and nobody knows which was. And a page counts as stored to
//! from the fault on that makes it writable: until the store is made, it may be pushed as it was.

use std::collections::HashMap;

/// A page: the number of its file, and its own.
pub type Page = (u32, u32);

/// Stands for the file at the server in place of a mount.
pub const SERVER: u32 = u32::MAX;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Store(Page, u64),
    Read(Page, u64),
    /// All that was stored before in this file, on the same mount.
    Sync(u32),
}

/// Something that was done on a mount, and when that began and ended (nanoseconds on one clock).
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub mount: u32,
    pub what: What,
    pub start: u64,
    pub end: u64,
}

/// A store, and when it was first known to be synced.
#[derive(Clone, Copy, Debug)]
struct Store {
    mount: Option<u32>,
    value: u64,
    start: u64,
    end: u64,
    synced: Option<u64>,
}

impl Store {
    /// Whether a store of `later` has surely taken this one's place.
    fn is_past(&self, later: &Store) -> bool {
        let synced = self.synced.is_some_and(|synced| synced < later.start);
        self.end < later.start && (synced || self.mount == later.mount)
    }
}

/// What is wrong with a history; `before` has the values that there were, synced, before it began.
pub fn complaints(events: &[Event], before: &HashMap<Page, u64>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (&page, &value) in before {
        let stores = stores(events, page, value);
        let as_it_was = as_it_was(events, page, value, &stores);
        let reads: Vec<(&Event, u64)> = events
            .iter()
            .filter_map(|event| match event.what {
                What::Read(of, value) if of == page => Some((event, value)),
                _ => None,
            })
            .collect();
        let mut first = HashMap::new();
        for (read, value) in &reads {
            let first: &mut u64 = first.entry((read.mount, *value)).or_insert(u64::MAX);
            *first = read.end.min(*first);
        }
        for &(read, value) in &reads {
            if let Some(complaint) = complaint(read, value, &stores, &as_it_was, &first) {
                complaints.push(format!("{page:?}: {complaint}"));
            }
        }
    }
    complaints
}

fn stores(events: &[Event], page: Page, before: u64) -> Vec<Store> {
    let synced = |store: &Event| {
        let speaks_for = |sync: &&Event| {
            sync.what == What::Sync(page.0) && sync.mount == store.mount && store.end < sync.start
        };
        events.iter().filter(speaks_for).map(|sync| sync.end).min()
    };
    let stores = events.iter().filter_map(|event| match event.what {
        What::Store(of, value) if of == page => Some(Store {
            mount: Some(event.mount),
            value,
            start: event.start,
            end: event.end,
            synced: synced(event),
        }),
        _ => None,
    });
    let first = Store {
        mount: None,
        value: before,
        start: 0,
        end: 0,
        synced: Some(0),
    };
    std::iter::once(first).chain(stores).collect()
}

/// What a page held when a store to it began, or what was read of it until that ended: pushed like the store, but
/// before it. With the value of that one.
fn as_it_was(events: &[Event], page: Page, before: u64, stores: &[Store]) -> Vec<(Store, u64)> {
    let mut all = Vec::new();
    for store in stores {
        let Some(mount) = store.mount else { continue };
        let there = events.iter().filter_map(|event| match event.what {
            What::Read(of, value) | What::Store(of, value)
                if of == page && event.mount == mount && value != store.value =>
            {
                Some((event, value))
            }
            _ => None,
        });
        let last = there
            .clone()
            .filter(|(event, _)| event.end <= store.start)
            .max_by_key(|(event, _)| event.end);
        let meanwhile = there.filter(|(event, _)| {
            let read = matches!(event.what, What::Read(..));
            read && event.end > store.start && event.start < store.end
        });
        let values = meanwhile.map(|(_, value)| value);
        let values = values.chain([last.map_or(before, |(_, value)| value)]);
        all.extend(values.map(|value| (Store { value, ..*store }, store.value)));
    }
    all
}

/// `first` has when a mount has read a value for the first time.
fn complaint(
    read: &Event,
    value: u64,
    stores: &[Store],
    as_it_was: &[(Store, u64)],
    first: &HashMap<(u32, u64), u64>,
) -> Option<String> {
    let Some(found) = stores.iter().find(|store| store.value == value) else {
        return Some(format!(
            "{value:x} was read by {read:?}, which nobody wrote"
        ));
    };
    if read.end < found.start {
        return Some(format!("{read:?} before {found:x?} began"));
    }
    let counts = |store: &&Store| {
        let own = store.mount == Some(read.mount) && store.end < read.start;
        let read_before = first.get(&(read.mount, store.value));
        let seen = [store.synced, read_before.copied()];
        own || seen.into_iter().flatten().any(|seen| seen < read.start)
    };
    let missed = |found: &Store, after: Option<u64>| {
        let is_newer = |store: &&Store| found.is_past(store) || Some(store.value) == after;
        stores.iter().filter(is_newer).find(counts)
    };
    let mut again = as_it_was.iter().filter(|(store, _)| store.value == value);
    if again.any(|(store, after)| store.start <= read.end && missed(store, Some(*after)).is_none())
    {
        return None;
    }
    let missed = missed(found, None)?;
    Some(format!(
        "{read:x?} found {found:x?} in place of {missed:x?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Page = (0, 0);

    fn event(mount: u32, what: What, (start, end): (u64, u64)) -> Event {
        Event {
            mount,
            what,
            start,
            end,
        }
    }

    fn store(mount: u32, value: u64, times: (u64, u64)) -> Event {
        event(mount, What::Store(PAGE, value), times)
    }

    fn read(mount: u32, value: u64, times: (u64, u64)) -> Event {
        event(mount, What::Read(PAGE, value), times)
    }

    fn sync(mount: u32, times: (u64, u64)) -> Event {
        event(mount, What::Sync(0), times)
    }

    fn wrong(events: &[Event]) -> usize {
        complaints(events, &HashMap::from([(PAGE, 0), ((1, 0), 0)])).len()
    }

    #[test]
    fn what_was_synced_has_to_be_seen() {
        let synced = [store(1, 7, (1, 2)), sync(1, (3, 5))];
        let with = |event: Event| wrong(&[synced[0], synced[1], event]);
        assert_eq!(with(read(2, 0, (6, 7))), 1);
        assert_eq!(with(read(SERVER, 0, (6, 7))), 1);
        assert_eq!(with(read(2, 0, (4, 7))), 0, "it began before");
        assert_eq!(with(read(2, 7, (6, 7))), 0);
        assert_eq!(with(read(2, 7, (2, 3))), 0, "it may be early");
        let other = event(2, What::Read((1, 0), 0), (6, 7));
        assert_eq!(with(other), 0, "another file");
    }

    #[test]
    fn a_sync_speaks_for_what_its_mount_stored_before() {
        let stored = store(1, 7, (1, 3));
        let late = read(2, 0, (8, 9));
        assert_eq!(wrong(&[stored, sync(1, (4, 5)), late]), 1);
        assert_eq!(wrong(&[stored, sync(1, (2, 5)), late]), 0);
        assert_eq!(wrong(&[stored, sync(2, (4, 5)), late]), 0);
        let elsewhere = event(1, What::Sync(1), (4, 5));
        assert_eq!(wrong(&[stored, elsewhere, late]), 0);
        assert_eq!(wrong(&[stored, elsewhere, sync(1, (6, 7)), late]), 1);
    }

    #[test]
    fn a_mount_reads_what_it_has_stored() {
        let stored = store(1, 7, (1, 2));
        assert_eq!(wrong(&[stored, read(1, 0, (3, 4))]), 1);
        assert_eq!(wrong(&[stored, read(1, 0, (2, 4))]), 0);
        assert_eq!(wrong(&[stored, read(2, 0, (3, 4))]), 0);
        let twice = [stored, store(1, 8, (3, 4))];
        assert_eq!(wrong(&[twice[0], twice[1], read(1, 7, (5, 6))]), 1);
        assert_eq!(wrong(&[twice[0], twice[1], read(2, 7, (5, 6))]), 0);
        let synced = sync(1, (5, 6));
        assert_eq!(wrong(&[twice[0], twice[1], synced, read(2, 7, (7, 8))]), 1);
    }

    #[test]
    fn what_was_stored_at_the_same_time_may_win() {
        let stored = [store(1, 7, (1, 4)), store(2, 8, (2, 3))];
        let synced = [sync(1, (5, 6)), sync(2, (5, 6))];
        for value in [7, 8] {
            let events = [
                stored[0],
                stored[1],
                synced[0],
                synced[1],
                read(3, value, (7, 8)),
            ];
            assert_eq!(wrong(&events), 0);
        }
        let neither = read(3, 0, (7, 8));
        assert_eq!(wrong(&[stored[0], synced[0], neither]), 1);
        assert_eq!(
            wrong(&[stored[0], stored[1], synced[0], synced[1], neither]),
            1
        );
        // Stored before, but pushed nobody knows when.
        let stored = [store(1, 7, (1, 2)), store(2, 8, (3, 4))];
        let synced = [sync(2, (5, 6)), sync(1, (5, 6))];
        let events = [
            stored[0],
            stored[1],
            synced[0],
            synced[1],
            read(2, 7, (7, 8)),
        ];
        assert_eq!(wrong(&events), 0);
    }

    #[test]
    fn nothing_goes_back() {
        let stored = [store(1, 7, (1, 2)), sync(1, (3, 4)), store(1, 8, (5, 6))];
        let seen =
            |first: Event, second: Event| wrong(&[stored[0], stored[1], stored[2], first, second]);
        assert_eq!(seen(read(2, 8, (7, 8)), read(2, 7, (9, 10))), 1);
        assert_eq!(seen(read(2, 8, (7, 8)), read(3, 7, (9, 10))), 0, "not yet");
        assert_eq!(seen(read(2, 8, (7, 9)), read(2, 7, (8, 10))), 0);
    }

    #[test]
    fn a_page_may_be_pushed_as_it_was_while_it_is_stored_to() {
        let seen = [store(1, 7, (4, 5)), read(3, 7, (6, 7)), read(3, 0, (8, 9))];
        assert_eq!(wrong(&seen), 1);
        let with = |event: Event| wrong(&[seen[0], seen[1], seen[2], event]);
        assert_eq!(with(store(2, 8, (3, 10))), 0);
        assert_eq!(with(store(2, 8, (10, 11))), 1, "later");
        assert_eq!(with(store(1, 8, (6, 11))), 1, "it was 7 by then");
    }

    #[test]
    fn nothing_is_made_up() {
        let stored = store(1, 0x7_0000_0001, (1, 2));
        assert_eq!(wrong(&[stored, read(1, 0x7_0000_0000, (3, 4))]), 1, "torn");
        assert_eq!(wrong(&[stored, read(2, 9, (1, 4))]), 1);
        assert_eq!(
            wrong(&[store(1, 7, (5, 6)), read(2, 7, (1, 4))]),
            1,
            "too early"
        );
        assert_eq!(wrong(&[store(1, 7, (4, 6)), read(2, 7, (1, 4))]), 0);
    }
}
