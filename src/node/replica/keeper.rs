//! Attaching to the authority, and keeping attached.

use super::link::{Link, LinkEvent, Session};
use crate::region::Lease;
use crate::transport::ConnectError;
use crate::transport::stream::{self, StreamError};
use crate::wire::{AuthorityEvent, Hello, HelloReply, Refusal, ReplicaEvent, Version};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How long one attempt at a connection may take.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Link {
    /// Connects and is let in, as connection `number`, after one of `generation`.
    pub(super) async fn attach(
        &self,
        number: u64,
        generation: u64,
    ) -> std::result::Result<Attached, AttachError> {
        let sent = Instant::now();
        let connection = self
            .dialer
            .connect(DIAL_PATIENCE)
            .await
            .map_err(AttachError::Dial)?;
        let refused = |error: StreamError| {
            if stream::is_unauthorized(&connection) {
                return AttachError::Dial(ConnectError::Unauthorized {
                    host: self.dialer.name(),
                    key: self.dialer.public().fingerprint(),
                    line: self.dialer.public().to_string(),
                });
            }
            AttachError::Failed(format!("{}: {error}", self.dialer.name()))
        };
        let lost = |error: quinn::ConnectionError| refused(StreamError::Link(error.to_string()));
        let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
        let hello = Hello {
            oldest: Version::OLDEST as u16,
            newest: Version::NEWEST as u16,
            client: self.client,
            subtree: self.subtree.clone(),
            read_only: self.read_only,
            // Later it knows what it needs.
            listing: number == 1,
        };
        stream::send(&mut send, &hello).await.map_err(refused)?;
        let reply = tokio::time::timeout(DIAL_PATIENCE, stream::receive(&mut receive))
            .await
            .map_err(|_| refused(StreamError::Link("no answer to hello".into())))?
            .map_err(refused)?;
        let welcome = match reply {
            Some(HelloReply::Welcome(welcome)) => Arc::new(welcome),
            Some(HelloReply::Refused(refusal)) => return Err(self.refusal(&refusal)),
            None => return Err(refused(StreamError::Link("closed during hello".into()))),
        };
        let lease = Lease::new(sent, Duration::from_millis(u64::from(welcome.lease_ms)));
        self.set_lease(|ours| *ours = lease);
        self.silent.store(false, Ordering::Relaxed);
        let generation = if welcome.resumed {
            generation
        } else {
            generation + 1
        };
        let session = Session {
            connection,
            welcome,
            generation,
            number,
        };
        Ok(Attached {
            session,
            send,
            receive,
        })
    }

    fn refusal(&self, refusal: &Refusal) -> AttachError {
        let name = self.dialer.name();
        let subtree = self.subtree.as_os().to_string_lossy().into_owned();
        AttachError::Failed(match refusal {
            Refusal::Version { oldest, newest } => format!(
                "{name}: speaks protocol versions {oldest} to {newest}, this program {} to {}",
                Version::OLDEST as u16,
                Version::NEWEST as u16
            ),
            Refusal::Subtree(errno) => {
                let why = std::io::Error::from_raw_os_error(*errno);
                format!("{name}: '{subtree}' cannot be served: {why}")
            }
            Refusal::Client => format!("{name}: this mount's id belongs to another key there"),
            Refusal::Full => format!("{name}: the server has as many mounts as it takes"),
        })
    }
}

/// A session and its control stream.
pub(super) struct Attached {
    pub session: Session,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
}

/// Why this replica was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error("{0}")]
    Dial(ConnectError),
    #[error("{0}")]
    Failed(String),
}

/// Keeps a link up: runs the control stream, and dials again when it ends.
pub(super) struct Keeper {
    pub link: Arc<Link>,
    pub events: mpsc::Sender<LinkEvent>,
    pub outgoing: mpsc::UnboundedReceiver<ReplicaEvent>,
}

impl Keeper {
    /// Runs until the link is closed.
    pub async fn run(mut self, mut attached: Attached) {
        loop {
            let session = attached.session.clone();
            let why = self.control(attached).await;
            if self.link.closing.load(Ordering::Acquire) {
                return;
            }
            tracing::warn!("{}: link lost ({why}), reconnecting", self.link.name());
            self.link.session.send_replace(None);
            session.connection.close(0u32.into(), b"link given up");
            // Acknowledgements of the old connection mean nothing on the next.
            while self.outgoing.try_recv().is_ok() {}
            let Some(next) = self.reconnect(&session).await else {
                return;
            };
            attached = next;
            tracing::warn!("{}: link is up again", self.link.name());
            let next = attached.session.clone();
            if next.generation != session.generation {
                let (done, checked) = oneshot::channel();
                if self
                    .events
                    .send(LinkEvent::Reattached(next.clone(), done))
                    .await
                    .is_err()
                {
                    return;
                }
                let _ = checked.await;
            }
            self.link.session.send_replace(Some(next));
        }
    }

    /// A renewal was answered, and so was all that was told before it.
    async fn renewed(&self, sent: u64) {
        self.link.renewed(sent);
        // Nobody takes it any more: the next event finds out.
        let _ = self.events.send(LinkEvent::Renewed(sent)).await;
    }

    /// Runs the control stream until it ends; says why.
    async fn control(&mut self, attached: Attached) -> String {
        let Attached {
            session,
            mut send,
            mut receive,
        } = attached;
        let (decoded, mut incoming) = mpsc::channel(64);
        let reader = tokio::spawn(async move {
            // A message must not be torn by a select, so it is read in a task of its own.
            loop {
                let event = stream::receive::<AuthorityEvent>(&mut receive).await;
                let last = !matches!(event, Ok(Some(_)));
                if decoded.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        let mut lease_was_valid = true;
        let mut unanswered: Option<Instant> = None;
        let give_up = Duration::from_millis(u64::from(session.welcome.lease_ms)) * 2 / 3;
        let why = loop {
            let renewal = self.link.lease.lock().next_renewal();
            let deadline = unanswered.map(|since| since + give_up);
            let wake = deadline.map_or(renewal, |deadline| deadline.min(renewal));
            tokio::select! {
                event = incoming.recv() => match event {
                    Some(Ok(Some(AuthorityEvent::Renewed { sent }))) => {
                        unanswered = None;
                        self.renewed(sent).await;
                        lease_was_valid = true;
                    }
                    Some(Ok(Some(event))) => {
                        if self.events.send(LinkEvent::Event(event)).await.is_err() {
                            break "closing".to_string();
                        }
                    }
                    Some(Ok(None)) | None => break "closed by the server".to_string(),
                    Some(Err(error)) => break error.to_string(),
                },
                event = self.outgoing.recv() => {
                    let Some(event) = event else { break "closing".to_string() };
                    let last = event == ReplicaEvent::Goodbye;
                    if let Err(error) = stream::send(&mut send, &event).await {
                        break error.to_string();
                    }
                    if last {
                        let _ = send.finish();
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    let now = Instant::now();
                    if deadline.is_some_and(|deadline| deadline <= now) {
                        break "renewals are not answered".to_string();
                    }
                    if lease_was_valid && !self.link.lease_is_valid() {
                        lease_was_valid = false;
                        let _ = self.events.send(LinkEvent::LeaseLost).await;
                    }
                    let mut sent = 0;
                    self.link.set_lease(|lease| sent = lease.handle_sent(now));
                    unanswered.get_or_insert(now);
                    if let Err(error) = stream::send(&mut send, &ReplicaEvent::Renew { sent }).await {
                        break error.to_string();
                    }
                }
            }
        };
        reader.abort();
        why
    }

    /// Dials until there is a connection; tells when the lease runs out meanwhile. `None` on closing.
    async fn reconnect(&self, last: &Session) -> Option<Attached> {
        let mut pause = Duration::from_millis(50);
        let mut lease_told = false;
        let mut said = String::new();
        loop {
            if self.link.closing.load(Ordering::Acquire) {
                return None;
            }
            let attempt = self.link.attach(last.number + 1, last.generation);
            let attempt = self.watching_lease(&mut lease_told, attempt).await;
            match attempt {
                Ok(attached) => return Some(attached),
                Err(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::warn!("{error}");
                        said = error;
                    }
                }
            }
            self.watching_lease(&mut lease_told, tokio::time::sleep(pause))
                .await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Runs `work`, and reports once when the lease runs out meanwhile.
    async fn watching_lease<R>(&self, told: &mut bool, work: impl Future<Output = R>) -> R {
        let mut work = std::pin::pin!(work);
        if !*told {
            let ends = self.link.lease.lock().ends();
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep_until(ends.into()) => {}
            }
            *told = true;
            tracing::warn!(
                "{}: the lease has run out, copies are not used",
                self.link.name()
            );
            let _ = self.events.send(LinkEvent::LeaseLost).await;
        }
        work.await
    }
}
