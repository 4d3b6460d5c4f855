//! Answers kept for requests that may come again: a request that changes something is applied once, however
//! many connections it takes until its answer arrives.

use crate::wire::{Reply, Sequence};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// The most answers kept for one replica. One that lets them pile up beyond that loses the right to
/// repeat its oldest requests.
const REPLIES_MAX: usize = 8192;

/// Answers of one session, by the number of their request.
#[derive(Default)]
pub(super) struct Replies(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    entries: BTreeMap<u64, Entry>,
    /// Requests below this that are not among the entries are not applied any more.
    floor: u64,
}

enum Entry {
    Running(watch::Receiver<Option<Reply>>),
    Done(Reply),
}

/// What is to be done about a request.
pub(super) enum Turn<'a> {
    /// It is new: apply it.
    First(Ticket<'a>),
    /// It was applied; this was the answer.
    Again(Reply),
    /// It is being applied: the answer comes here; where nothing comes, ask once more.
    Running(watch::Receiver<Option<Reply>>),
    /// It was answered, as the replica itself has said, or its answer was dropped.
    Over,
}

/// The right to apply a request. If it is dropped unfinished, the request counts as never seen.
pub(super) struct Ticket<'a> {
    replies: &'a Replies,
    number: u64,
    sender: watch::Sender<Option<Reply>>,
}

impl Replies {
    /// What to do about the request with this sequence.
    pub fn begin(&self, sequence: Sequence) -> Turn<'_> {
        let Sequence { number, answered } = sequence;
        let mut kept = self.0.lock();
        if answered > kept.floor {
            kept.floor = answered;
            kept.entries = kept.entries.split_off(&answered);
        }
        match kept.entries.get(&number) {
            Some(Entry::Done(reply)) => return Turn::Again(reply.clone()),
            Some(Entry::Running(receiver)) => return Turn::Running(receiver.clone()),
            None if number < kept.floor => return Turn::Over,
            None => {}
        }
        kept.make_room();
        let (sender, receiver) = watch::channel(None);
        kept.entries.insert(number, Entry::Running(receiver));
        Turn::First(Ticket {
            replies: self,
            number,
            sender,
        })
    }
}

impl Kept {
    /// Drops the oldest answer if there are too many. Those being applied stay: their number is
    /// bounded elsewhere.
    fn make_room(&mut self) {
        if self.entries.len() < REPLIES_MAX {
            return;
        }
        let oldest = self.entries.iter().find_map(|(number, entry)| match entry {
            Entry::Done(_) => Some(*number),
            Entry::Running(_) => None,
        });
        if let Some(oldest) = oldest {
            self.entries.remove(&oldest);
            self.floor = self.floor.max(oldest + 1);
        }
    }
}

impl Ticket<'_> {
    /// The request was applied, with this answer.
    pub fn finish(self, reply: &Reply) {
        let mut kept = self.replies.0.lock();
        if let Some(entry) = kept.entries.get_mut(&self.number) {
            *entry = Entry::Done(reply.clone());
        }
        drop(kept);
        self.sender.send_replace(Some(reply.clone()));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut kept = self.replies.0.lock();
        if let Some(Entry::Running(_)) = kept.entries.get(&self.number) {
            kept.entries.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Tick;
    use crate::wire::Answer;

    fn reply(at: u64) -> Reply {
        Reply {
            at: Tick(at),
            result: Ok(Answer::Done),
        }
    }

    fn apply(replies: &Replies, number: u64, answered: u64) -> bool {
        match replies.begin(Sequence { number, answered }) {
            Turn::First(ticket) => ticket.finish(&reply(number)),
            Turn::Again(kept) => {
                assert_eq!(kept, reply(number));
                return false;
            }
            _ => panic!("neither new nor kept"),
        }
        true
    }

    fn over(replies: &Replies, number: u64) -> bool {
        let answered = 0;
        matches!(replies.begin(Sequence { number, answered }), Turn::Over)
    }

    #[test]
    fn an_answer_is_kept_until_it_was_seen() {
        let replies = Replies::default();
        assert!(apply(&replies, 1, 0) && apply(&replies, 2, 0));
        assert!(!apply(&replies, 1, 0) && !apply(&replies, 2, 0));
        assert!(apply(&replies, 3, 2));
        assert!(over(&replies, 1), "it was answered: never apply it again");
        assert!(
            !apply(&replies, 2, 0),
            "a late repetition with an old floor"
        );
    }

    #[test]
    fn one_that_is_being_applied_is_waited_for() {
        let replies = Replies::default();
        let sequence = Sequence {
            number: 7,
            answered: 0,
        };
        let Turn::First(ticket) = replies.begin(sequence) else {
            panic!("it is new");
        };
        let Turn::Running(receiver) = replies.begin(sequence) else {
            panic!("it is being applied");
        };
        ticket.finish(&reply(7));
        assert_eq!(*receiver.borrow(), Some(reply(7)));
        let sequence = Sequence {
            number: 8,
            answered: 0,
        };
        drop(replies.begin(sequence));
        assert!(apply(&replies, 8, 0), "dropped: as if never seen");
    }

    #[test]
    fn their_number_is_bounded() {
        let replies = Replies::default();
        for number in 0..REPLIES_MAX as u64 + 10 {
            assert!(apply(&replies, number, 0));
        }
        assert!(over(&replies, 9) && !apply(&replies, 10, 0));
        assert_eq!(replies.0.lock().entries.len(), REPLIES_MAX);
    }
}
