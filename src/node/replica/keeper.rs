//! Attaching to the authority, and keeping attached.

use super::clock::Timer;
use super::link::{Link, LinkEvent, Outgoing, Session};
use super::revoke::MARGIN;
use crate::region::Lease;
use crate::transport::stream::{self, StreamError};
use crate::transport::{self, ConnectError, Network};
use crate::wire::{AuthorityEvent, Hello, HelloReply, Refusal, ReplicaEvent, Version};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How long one attempt at a connection may take.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);
/// A renewal that is not answered for so long raises the question whether anybody is there.
const DOUBT: Duration = Duration::from_secs(1);
/// The first pause between two attempts, and the longest one.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

impl Link {
    /// Connects and is let in, as connection `number`, after one of `generation`.
    pub(super) async fn attach(
        &self,
        number: u64,
        generation: u64,
    ) -> std::result::Result<Attached, AttachError> {
        let sent = self.clock.now();
        let connection = match number {
            1 => self.route.dialer().connect(DIAL_PATIENCE).await,
            _ => self.route.connect_again(DIAL_PATIENCE).await,
        };
        let connection = connection.map_err(AttachError::Dial)?;
        let dialer = self.route.dialer();
        let refused = |error: StreamError| match stream::is_unauthorized(&connection) {
            true => AttachError::Dial(dialer.unauthorized()),
            false => AttachError::Failed(format!("{}: {error}", dialer.name())),
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
        let lease = Duration::from_millis(u64::from(welcome.lease_ms));
        let lease = Lease::new(sent, lease - lease / MARGIN);
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
            lease,
            send,
            receive,
        })
    }

    fn refusal(&self, refusal: &Refusal) -> AttachError {
        let name = self.name();
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
    /// In force once it is known which copies still hold.
    pub lease: Lease,
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

/// An event from the control stream; none at its end.
type EventRead = std::result::Result<Option<AuthorityEvent>, StreamError>;

/// Keeps a link up: runs the control stream, and dials again when it ends.
pub(super) struct Keeper {
    pub link: Arc<Link>,
    pub events: mpsc::Sender<LinkEvent>,
    pub outgoing: mpsc::UnboundedReceiver<Outgoing>,
    pub timer: Timer,
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
            // Says more than that a stream has ended.
            let why = (session.connection.close_reason()).map_or(why, |reason| reason.to_string());
            tracing::warn!("{}: link lost ({why}), reconnecting", self.link.name());
            self.link.set_session(None);
            session.connection.close(0u32.into(), b"link given up");
            // Acknowledgements of the old connection mean nothing on the next.
            while self.outgoing.try_recv().is_ok() {}
            let Some(next) = self.reconnect(&session).await else {
                return;
            };
            // From here on copies are those of before, or are told to be.
            self.link.set_adrift(false);
            attached = next;
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
            let lease = attached.lease.clone();
            self.link.set_lease(|ours| *ours = lease);
            let lost = self.link.set_session(Some(next));
            let (name, lost) = (self.link.name(), lost.as_secs_f64());
            tracing::warn!("{name}: link is up again after {lost:.1} s");
            if self.events.send(LinkEvent::Up).await.is_err() {
                return;
            }
        }
    }

    /// A renewal was answered, and so was all that was told before it.
    async fn renewed(&self, sent: u64) {
        self.link.renewed(sent);
        // Nobody takes it any more: the next event finds out.
        let _ = self.events.send(LinkEvent::Renewed(sent)).await;
    }

    /// When there is something to do: renew the lease, see it run out, or give up.
    fn next_look(&self, deadline: Option<Instant>, leased: bool) -> Instant {
        let lease = self.link.lease.lock();
        let ends = leased.then(|| lease.ends());
        let others = [deadline, ends].into_iter().flatten();
        others.fold(lease.next_renewal(), Instant::min)
    }

    /// Asks for the lease to be renewed.
    async fn renew(&self, send: &mut quinn::SendStream) -> std::result::Result<(), String> {
        let mut sent = 0;
        let now = self.link.clock.now();
        self.link.set_lease(|lease| sent = lease.handle_sent(now));
        let sent = stream::send(send, &ReplicaEvent::Renew { sent }).await;
        sent.map_err(|error| error.to_string())
    }

    /// Runs the control stream until it ends; says why.
    async fn control(&mut self, attached: Attached) -> String {
        let (session, mut send) = (attached.session, attached.send);
        let (reader, mut incoming) = read_events(attached.receive);
        let network = Network::watch();
        let mut lease_was_valid = true;
        let mut unanswered: Option<Instant> = None;
        let give_up = Duration::from_millis(u64::from(session.welcome.lease_ms)) * 2 / 3;
        let why = loop {
            let deadline = unanswered.map(|since| since + give_up);
            let wake = self.next_look(deadline, lease_was_valid);
            tokio::select! {
                event = incoming.recv() => match event {
                    Some(Ok(Some(AuthorityEvent::Renewed { sent }))) => {
                        unanswered = None;
                        self.renewed(sent).await;
                        lease_was_valid = true;
                    }
                    Some(Ok(Some(event))) => {
                        let event = LinkEvent::Event(session.generation, event);
                        if self.events.send(event).await.is_err() {
                            break "closing".to_string();
                        }
                    }
                    Some(Ok(None)) | None => break "closed by the server".to_string(),
                    Some(Err(error)) => break error.to_string(),
                },
                event = self.outgoing.recv() => {
                    let Some((of, event)) = event else { break "closing".to_string() };
                    // It may have been on its way since before an earlier connection broke.
                    if of.is_some_and(|of| of != session.generation) {
                        continue;
                    }
                    let last = event == ReplicaEvent::Goodbye;
                    if let Err(error) = stream::send(&mut send, &event).await {
                        break error.to_string();
                    }
                    if last {
                        let _ = send.finish();
                    }
                }
                () = self.timer.until(wake) => {
                    let now = self.link.clock.now();
                    if deadline.is_some_and(|deadline| deadline <= now) {
                        break "renewals are not answered".to_string();
                    }
                    if lease_was_valid && !self.link.lease_is_valid() {
                        lease_was_valid = false;
                        let _ = self.events.send(LinkEvent::LeaseLost).await;
                    }
                    if now < self.link.lease.lock().next_renewal() {
                        continue;
                    }
                    unanswered.get_or_insert(now);
                    if let Err(why) = self.renew(&mut send).await {
                        break why;
                    }
                }
                () = gone(&session, unanswered) => break "nobody listens there any more".to_string(),
                // Something to send, so that the authority learns at once from where it comes now.
                () = network.changed() => {
                    unanswered.get_or_insert(self.link.clock.now());
                    if let Err(why) = self.renew(&mut send).await {
                        break why;
                    }
                }
            }
        };
        reader.abort();
        why
    }

    /// Dials until there is a connection; tells when the lease runs out meanwhile. `None` on closing.
    async fn reconnect(&mut self, last: &Session) -> Option<Attached> {
        let network = Network::watch();
        let mut pause = PAUSE_MIN;
        let mut lease_told = false;
        loop {
            if self.link.closing.load(Ordering::Acquire) {
                return None;
            }
            let link = self.link.clone();
            let attempt = async {
                tokio::select! {
                    attempt = link.attach(last.number + 1, last.generation) => Some(attempt),
                    () = link.closing() => None,
                }
            };
            let attempt = self.watching_lease(&mut lease_told, attempt).await?;
            match attempt {
                Ok(attached) => return Some(attached),
                Err(error) => {
                    let error = error.to_string();
                    let mut trouble = link.trouble.lock();
                    if trouble.as_ref() != Some(&error) {
                        tracing::warn!("{error}");
                        *trouble = Some(error);
                    }
                }
            }
            let rest = async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => (pause * 2).min(PAUSE_MAX),
                    () = network.changed() => PAUSE_MIN,
                    () = link.closing() => pause,
                }
            };
            pause = self.watching_lease(&mut lease_told, rest).await;
        }
    }

    /// Runs `work`, and reports once when the lease runs out meanwhile.
    async fn watching_lease<R>(&mut self, told: &mut bool, work: impl Future<Output = R>) -> R {
        let mut work = std::pin::pin!(work);
        if !*told {
            let ends = self.link.lease.lock().ends();
            tokio::select! {
                result = &mut work => return result,
                () = self.timer.until(ends) => {}
            }
            *told = true;
            let used = match self.link.serve_offline {
                true => "copies are used all the same",
                false => "copies are not used",
            };
            tracing::warn!("{}: the lease has run out, {used}", self.link.name());
            self.link.set_adrift(true);
            let _ = self.events.send(LinkEvent::LeaseLost).await;
        }
        work.await
    }
}

/// Ends when a renewal is not answered and the server's machine says that there is no server.
async fn gone(session: &Session, unanswered: Option<Instant>) {
    let Some(since) = unanswered else {
        return std::future::pending().await;
    };
    tokio::time::sleep_until((since + DOUBT).into()).await;
    transport::refused(session.connection.remote_address()).await;
}

/// What comes on the control stream: its end, or an error, is the last of it. Read by a task of its own, as a message must
/// not be torn by a select.
fn read_events(mut receive: quinn::RecvStream) -> (JoinHandle<()>, mpsc::Receiver<EventRead>) {
    let (decoded, incoming) = mpsc::channel(64);
    let reader = tokio::spawn(async move {
        loop {
            let event = stream::receive::<AuthorityEvent>(&mut receive).await;
            let last = !matches!(event, Ok(Some(_)));
            if decoded.send(event).await.is_err() || last {
                return;
            }
        }
    });
    (reader, incoming)
}
