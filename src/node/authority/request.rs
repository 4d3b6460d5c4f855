//! One request stream: the request is received whole, carried out, and answered.
//!
//! A request that changes something is received with all its bytes before any of it is applied, and once it is
//! being applied it is carried to its end, whatever becomes of its connection.

use super::connection::Attached;
use super::push::Bytes;
use super::replies::Turn;
use super::{
    PRIORITY_BACKGROUND, PRIORITY_REPLIES, REQUEST_BYTES_FREE, REQUEST_REST_MAX, RESET_UNFINISHED,
};
use crate::region::Tick;
use crate::store::Errno;
use crate::transport::stream::{self, StreamError};
use crate::wire::{Access, Answer, ChangeRequest, Node, ReadRequest, Reply, Request, Sequence};
use quinn::{RecvStream, SendStream};
use std::time::Instant;
use tokio::time::timeout;

/// Serves one request.
pub(super) async fn serve(attached: &Attached, mut send: SendStream, mut receive: RecvStream) {
    let served = answer(attached, &mut send, &mut receive).await;
    stream::take_end(&mut receive);
    if let Err(error) = served {
        // Otherwise it would end as if it were complete. An error means that it has ended already.
        let _ = send.reset(RESET_UNFINISHED);
        match error {
            StreamError::Protocol(what) => attached.breach(&what),
            StreamError::Link(why) => {
                tracing::debug!(peer = %attached.peer, %why, "a request is dropped")
            }
            StreamError::Stopped => {}
        }
    }
}

async fn answer(
    attached: &Attached,
    send: &mut SendStream,
    receive: &mut RecvStream,
) -> Result<(), StreamError> {
    let session = &attached.session;
    let received = stream::receive_within(receive, REQUEST_BYTES_FREE, &session.request_room);
    let Some((request, _room)) = in_time(received).await? else {
        return Ok(());
    };
    let began = Instant::now();
    tracing::trace!(peer = %attached.peer, ?request);
    let mut priority = PRIORITY_REPLIES;
    // Held until the answer is taken.
    let mut _turn = None;
    let reply = match request {
        Request::Read(ReadRequest::Pull {
            handle,
            start,
            end,
            demand,
            compress,
        }) => {
            let asked = super::pull::Asked {
                handle,
                start,
                end,
                demand,
                compress,
            };
            return attached.pull(send, asked).await;
        }
        Request::Read(ReadRequest::OpenAndPull {
            node,
            access,
            end,
            compress,
        }) => {
            let reply = attached.open(&node, access).await;
            let Ok(Answer::Opened { handle, .. }) = reply.result else {
                return last_reply(priority, send, &reply).await;
            };
            send_reply(send, &reply).await?;
            let asked = super::pull::Asked {
                handle,
                start: 0,
                end,
                demand: true,
                compress,
            };
            return attached.pull(send, asked).await;
        }
        Request::Read(request @ ReadRequest::Lock { .. }) => attached.lock(request, receive).await,
        Request::Read(request) => {
            if let ReadRequest::Order { .. } = request {
                // It may be long, and nobody waits for it.
                priority = PRIORITY_BACKGROUND;
            }
            _turn = session.turn(&request).await;
            attached.read(request).await
        }
        Request::Change(sequence, request) => {
            attached.change_once(sequence, request, receive).await?
        }
    };
    tracing::debug!(peer = %attached.peer, at = reply.at.0, errno = ?reply.result.as_ref().err(),
        took = ?began.elapsed(), "answered");
    last_reply(priority, send, &reply).await
}

async fn last_reply(
    priority: i32,
    send: &mut SendStream,
    reply: &Reply,
) -> Result<(), StreamError> {
    send_reply_at(priority, send, reply).await?;
    let _ = send.finish();
    Ok(())
}

/// Sends a reply that somebody waits for.
pub(super) async fn send_reply(send: &mut SendStream, reply: &Reply) -> Result<(), StreamError> {
    send_reply_at(PRIORITY_REPLIES, send, reply).await
}

async fn send_reply_at(
    priority: i32,
    send: &mut SendStream,
    reply: &Reply,
) -> Result<(), StreamError> {
    // An error means that the connection is gone, as sending will show.
    let _ = send.set_priority(priority);
    match stream::send(send, reply).await {
        // Ours, not the replica's: nothing of it was sent.
        Err(StreamError::Protocol(what)) => {
            tracing::error!(%what, "an answer cannot be sent");
            let too_long = super::reply(reply.at, Err(Errno::OVERFLOW));
            stream::send(send, &too_long).await
        }
        sent => sent,
    }
}

/// The outcome of receiving, unless it rests for too long.
pub(super) async fn in_time<R>(
    receiving: impl Future<Output = Result<R, StreamError>>,
) -> Result<R, StreamError> {
    match timeout(REQUEST_REST_MAX, receiving).await {
        Ok(received) => received,
        Err(_) => Err(StreamError::Link(
            "a request was not sent to its end".into(),
        )),
    }
}

impl Attached {
    /// Applies a change, unless that was done before.
    async fn change_once(
        &self,
        sequence: Sequence,
        request: ChangeRequest,
        receive: &mut RecvStream,
    ) -> Result<Reply, StreamError> {
        let bytes = match &request {
            ChangeRequest::Push { extents, .. } => match Bytes::expect(extents) {
                Ok(total) => Some(self.receive_bytes(receive, total).await?),
                Err(errno) => return Ok(self.refuse(errno)),
            },
            _ => None,
        };
        if self.read_only {
            return Ok(self.refuse(Errno::ROFS));
        }
        loop {
            match self.session.replies.begin(sequence) {
                Turn::First(ticket) => {
                    let reply = self.change(request, bytes).await;
                    ticket.finish(&reply);
                    return Ok(reply);
                }
                Turn::Again(reply) => return Ok(self.again(&request, reply).await),
                Turn::Running(mut receiver) => {
                    let done = receiver.wait_for(Option::is_some).await;
                    if let Ok(Some(reply)) = done.as_deref() {
                        return Ok(reply.clone());
                    }
                }
                Turn::Over => return Ok(self.refuse(Errno::IO)),
            }
        }
    }

    /// A kept answer once more. A handle in it may be gone, with everything that was kept before the
    /// replica was away for too long: the file that was made is then opened anew.
    async fn again(&self, request: &ChangeRequest, kept: Reply) -> Reply {
        let (ChangeRequest::Create { dir, name, .. }, Ok(Answer::Opened { handle, attr, .. })) =
            (request, &kept.result)
        else {
            return kept;
        };
        if self.session.handle(*handle).is_ok() {
            return kept;
        }
        match dir.path.join(name) {
            Some(path) => self.open(&Node { id: attr.id, path }, Access::Write).await,
            None => super::reply(Tick(0), Err(Errno::NAMETOOLONG)),
        }
    }
}
