//! What is to be told to a connected replica on its control stream.

use crate::wire::AuthorityEvent;
use parking_lot::Mutex;
use std::collections::VecDeque;
use tokio::sync::Notify;

/// A replica that lets so many events pile up is not served any longer: its lease runs out.
const EVENTS_MAX: usize = 65_536;

/// Why an authority ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its lease has run out while a change waited for it.
    Expired,
    /// It does not take its events.
    Deaf,
}

/// Events of one connection, in order. Filled under the lock of the coherence, emptied by the task that
/// writes the control stream.
#[derive(Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    ready: Notify,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<AuthorityEvent>,
    /// The last renewal not yet answered: one answer stands for all before it.
    renewed: Option<u64>,
    end: Option<End>,
}

impl Outbox {
    pub fn put(&self, event: AuthorityEvent) {
        let mut queue = self.queue.lock();
        if queue.end.is_some() {
            return;
        }
        if queue.events.len() >= EVENTS_MAX {
            queue.events.clear();
            queue.end = Some(End::Deaf);
        } else {
            queue.events.push_back(event);
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// The renewal with this number was granted.
    pub fn renewed(&self, sent: u64) {
        self.queue.lock().renewed = Some(sent);
        self.ready.notify_one();
    }

    /// Nothing more is told; the connection is to end.
    pub fn end(&self, end: End) {
        self.queue.lock().end.get_or_insert(end);
        self.ready.notify_one();
    }

    /// Waits for events, or for the end when all before it were taken.
    pub async fn take(&self) -> Result<Vec<AuthorityEvent>, End> {
        loop {
            {
                let mut queue = self.queue.lock();
                let mut events: Vec<AuthorityEvent> = queue.events.drain(..).collect();
                if let Some(sent) = queue.renewed.take() {
                    events.push(AuthorityEvent::Renewed { sent });
                }
                if !events.is_empty() {
                    return Ok(events);
                }
                if let Some(end) = queue.end {
                    return Err(end);
                }
            }
            self.ready.notified().await;
        }
    }
}
