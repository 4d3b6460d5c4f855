//! One connection: being let in, the control stream, taking requests.

use super::allowance::Allowance;
use super::coherence::Coherence;
use super::outbox::{End, Outbox};
use super::session::{Attachment, Session};
use super::shares::Share;
use super::{
    CLOSE_BUSY, CLOSE_DONE, CLOSE_EXPIRED, CLOSE_PROTOCOL, GREETING_MAX, PRIORITY_EVENTS,
    REFUSAL_MAX, REQUESTS_RUNNING_MAX, Service, request,
};
use crate::store::{Errno, Store};
use crate::transport::stream::{self, StreamError};
use crate::transport::{Grant, PublicKey};
use crate::wire::{Hello, HelloReply, Refusal, ReplicaEvent, Version, Welcome};
use quinn::{Connection, RecvStream, SendStream};
use std::sync::Arc;
use tokio::time::timeout;

/// A connection that was let in, as its requests see it.
pub(super) struct Attached {
    pub service: Arc<Service>,
    pub session: Arc<Session>,
    pub connection: Connection,
    /// For messages.
    pub peer: String,
    /// Changes are refused on it.
    pub read_only: bool,
}

impl Attached {
    /// Runs calls to the store that are short if what they need is in memory: see [`Service::in_place`].
    pub async fn brief<R>(&self, calls: impl FnOnce() -> R) -> R {
        match self.service.in_place() {
            Some(_in_place) => calls(),
            None => self.blocking(calls).await,
        }
    }

    /// See [`Service::blocking`]. Those of other keys do not wait for all that this one asks for.
    pub async fn blocking<R>(&self, calls: impl FnOnce() -> R) -> R {
        // Never closed.
        let _share = self.session.share.calls.acquire().await;
        self.service.blocking(calls).await
    }

    pub fn store(&self) -> &dyn Store {
        &*self.session.tree.store
    }

    /// The replica has broken the protocol.
    pub fn breach(&self, what: &str) {
        breach(&self.connection, &self.peer, what);
    }
}

/// What has ended a connection.
enum Ended {
    Goodbye,
    Expired,
    Lost(String),
    Breach(String),
}

impl From<StreamError> for Ended {
    fn from(error: StreamError) -> Ended {
        match error {
            StreamError::Protocol(what) => Ended::Breach(what),
            error => Ended::Lost(error.to_string()),
        }
    }
}

impl From<quinn::ConnectionError> for Ended {
    fn from(error: quinn::ConnectionError) -> Ended {
        Ended::Lost(error.to_string())
    }
}

/// Serves a connection until it ends, and then keeps its session for a while.
pub(super) async fn serve(
    service: Arc<Service>,
    connection: Connection,
    key: PublicKey,
    grant: Grant,
) {
    let peer = key.fingerprint();
    let share = service.shares.of(key);
    let Some(greeting) = share.greeting() else {
        connection.close(CLOSE_BUSY, b"too many connections wait to be let in");
        return;
    };
    let greeted = timeout(
        GREETING_MAX,
        greet(&service, &connection, (key, share), &grant),
    )
    .await;
    drop(greeting);
    let greeted = match greeted {
        Ok(Ok(Some(greeted))) => greeted,
        Ok(Ok(None)) => return, // refused
        Ok(Err(Ended::Breach(what))) => return breach(&connection, &peer, &what),
        Ok(Err(_)) => return tracing::debug!(%peer, "gone before it was let in"),
        Err(_) => return breach(&connection, &peer, "not let in in time"),
    };
    let Greeted { attachment, .. } = &greeted;
    let client = attachment.session.client;
    let attached = Arc::new(Attached {
        service: service.clone(),
        session: attachment.session.clone(),
        read_only: greeted.welcome.read_only || greeted.read_only,
        connection: connection.clone(),
        peer: peer.clone(),
    });
    tracing::info!(%peer, ?client, from = %connection.remote_address(),
        resumed = attachment.resumed, "a replica is attached");
    let attachment = attachment.clone();
    match attend(&attached, greeted).await {
        Ended::Goodbye => {
            tracing::info!(%peer, ?client, "a replica has said goodbye");
            service.sessions.end(&attachment, &service.coherence);
            // Before it is told: a next run is not to wait for it.
            service.blocking(|| service.note_leases()).await;
            service.blocking(|| service.orders.save()).await;
            connection.close(CLOSE_DONE, b"goodbye");
            return;
        }
        Ended::Expired => {
            tracing::warn!(%peer, ?client, "a replica has not taken in changes within its lease");
            connection.close(CLOSE_EXPIRED, b"the lease has run out");
            // It would begin anew: nothing that it had open is of use to it any more.
            service.sessions.let_go(&attachment);
        }
        Ended::Breach(what) => breach(&connection, &peer, &what),
        Ended::Lost(why) => {
            tracing::info!(%peer, ?client, %why, "a replica is away");
            connection.close(CLOSE_DONE, b"");
        }
    }
    // Nothing of it is to be kept from being dropped while the session waits for its replica.
    drop((attached, connection));
    let come_again = attachment.session.come_again();
    if service.sessions.detach(&attachment, &service.coherence) {
        let _ = timeout(service.options.linger, come_again).await;
        service.sessions.end(&attachment, &service.coherence);
    }
}

fn breach(connection: &Connection, peer: &str, what: &str) {
    tracing::warn!(%peer, from = %connection.remote_address(), "closed: {what}");
    connection.close(CLOSE_PROTOCOL, what.as_bytes());
}

/// A replica that is let in, and is to be told so.
struct Greeted {
    attachment: Attachment,
    welcome: Welcome,
    listing: bool,
    read_only: bool,
    send: SendStream,
    receive: RecvStream,
}

/// Lets a replica in; `None` where it was told why not. Not to be cancelled once it is in: it ends then.
async fn greet(
    service: &Service,
    connection: &Connection,
    (key, share): (PublicKey, Arc<Share>),
    grant: &Grant,
) -> Result<Option<Greeted>, Ended> {
    let (mut send, mut receive) = connection.accept_bi().await?;
    let Some(hello) = stream::receive::<Hello>(&mut receive).await? else {
        return Err(Ended::Breach("a control stream without a hello".into()));
    };
    let refusal = match let_in(service, connection, (key, share, grant), &hello).await {
        Ok((attachment, welcome)) => {
            return Ok(Some(Greeted {
                attachment,
                welcome,
                listing: hello.listing,
                read_only: hello.read_only,
                send,
                receive,
            }));
        }
        Err(refusal) => refusal,
    };
    tracing::warn!(peer = %key.fingerprint(), from = %connection.remote_address(),
        client = ?hello.client, ?refusal, "a replica is refused");
    stream::send(&mut send, &HelloReply::Refused(refusal)).await?;
    if send.finish().is_ok() {
        // Until the replica has it, or does not want it.
        let _ = timeout(REFUSAL_MAX, send.stopped()).await;
    }
    connection.close(CLOSE_DONE, b"refused");
    Ok(None)
}

async fn let_in(
    service: &Service,
    connection: &Connection,
    (key, share, grant): (PublicKey, Arc<Share>, &Grant),
    hello: &Hello,
) -> Result<(Attachment, Welcome), Refusal> {
    let none = Refusal::Version {
        oldest: Version::OLDEST as u16,
        newest: Version::NEWEST as u16,
    };
    let version = Version::negotiate(hello.oldest, hello.newest).ok_or(none)?;
    // From here on as if it had asked for the part that its key is let in for.
    let too_long = Refusal::Subtree(Errno::NAMETOOLONG.raw_os_error());
    let hello = &Hello {
        subtree: grant.subtree.join_path(&hello.subtree).ok_or(too_long)?,
        ..hello.clone()
    };
    let known = service.sessions.tree(hello);
    let found = service.blocking(|| {
        let tree = known.map_or_else(|| service.trees.get(&hello.subtree), Ok)?;
        let root = tree.store.root()?;
        Ok((tree, root))
    });
    let (tree, root) = found
        .await
        .map_err(|errno: Errno| Refusal::Subtree(errno.raw_os_error()))?;
    let capabilities = tree.store.capabilities();
    service.coherence.overdue(hello.client).await;
    let attachment =
        service
            .sessions
            .attach(hello, (key, share), tree, connection, &service.coherence)?;
    service.blocking(|| service.note_leases()).await;
    let welcome = Welcome {
        version: version as u16,
        boot: service.boot,
        resumed: attachment.resumed,
        lease_ms: u32::try_from(service.options.lease.as_millis()).unwrap_or(u32::MAX),
        read_only: service.options.read_only || grant.read_only,
        server: service.user,
        root,
        capabilities,
        listing: None,
    };
    Ok((attachment, welcome))
}

/// Serves a connection that was let in until it ends.
async fn attend(attached: &Arc<Attached>, greeted: Greeted) -> Ended {
    let Greeted {
        attachment,
        mut welcome,
        listing,
        send,
        receive,
        ..
    } = greeted;
    if listing {
        welcome.listing = attached.first_listing(welcome.root.id).await;
    }
    let ended = tokio::select! {
        ended = take_requests(attached, &attachment) => ended,
        ended = take_events(attached, &attachment, receive) => ended,
        ended = write_events(&attachment.outbox, send, welcome) => ended,
    };
    ended.err().unwrap_or(Ended::Goodbye)
}

/// Starts a task for each request.
async fn take_requests(attached: &Arc<Attached>, attachment: &Attachment) -> Result<(), Ended> {
    let Attached {
        service, session, ..
    } = &**attached;
    let mut heard = false;
    let mut allowance = Allowance::new();
    loop {
        let (send, receive) = attached.connection.accept_bi().await?;
        if !heard {
            // It has got its welcome.
            session.while_current(attachment.generation, || {
                service.coherence.heard(session.client);
            });
            heard = true;
        }
        // Never closed.
        let permit = session.running.clone().acquire_owned().await;
        let running = REQUESTS_RUNNING_MAX - session.running.available_permits();
        allowance.adapt(&attached.connection, running);
        let attached = attached.clone();
        // The task outlives the connection: a change that has begun is carried to its end.
        tokio::spawn(async move {
            request::serve(&attached, send, receive).await;
            drop(permit);
        });
    }
}

/// Takes what the replica says of its own accord; returns when it has said goodbye.
async fn take_events(
    attached: &Attached,
    attachment: &Attachment,
    mut receive: RecvStream,
) -> Result<(), Ended> {
    let Attached {
        service, session, ..
    } = attached;
    while let Some(event) = stream::receive(&mut receive).await? {
        if event == ReplicaEvent::Goodbye {
            return Ok(());
        }
        session.while_current(attachment.generation, || {
            take_event(&service.coherence, attachment, event);
        });
    }
    Err(Ended::Lost("its control stream has ended".into()))
}

fn take_event(coherence: &Coherence, attachment: &Attachment, event: ReplicaEvent) {
    let session = &attachment.session;
    let client = session.client;
    match event {
        ReplicaEvent::Renew { sent } => {
            // If not, its lease runs out, and that ends the connection.
            if coherence.renew(client) {
                attachment.outbox.renewed(sent);
            }
        }
        ReplicaEvent::Taken { change } => coherence.taken(client, change),
        ReplicaEvent::Forget(nodes) => {
            coherence.forget(client, &nodes);
            for (node, _) in nodes {
                session.unobserve(node);
            }
        }
        // Taken by the caller.
        ReplicaEvent::Goodbye => {}
    }
}

/// Tells the replica what it is to know.
async fn write_events(
    outbox: &Outbox,
    mut send: SendStream,
    welcome: Welcome,
) -> Result<(), Ended> {
    // Others may wait for the replica's answer. An error means that the connection is gone.
    let _ = send.set_priority(PRIORITY_EVENTS);
    stream::send(&mut send, &HelloReply::Welcome(welcome)).await?;
    loop {
        match outbox.take().await {
            Ok(events) => {
                for event in events {
                    stream::send(&mut send, &event).await?;
                }
            }
            Err(End::Expired | End::Deaf) => return Err(Ended::Expired),
        }
    }
}
