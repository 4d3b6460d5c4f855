//! Pull and push tasks: one request each, run until the authority has answered it.

use super::link::{self, Moment, Session};
use super::region::{Region, Remote};
use super::{Shared, kernel};
use crate::region::{Failure, Pull, Push};
use crate::store::{Errno, Result};
use crate::transport::stream::{self, Frame, StreamError};
use crate::units::{ByteRange, PAGE_BYTES};
use crate::wire::frame::FRAME_BYTES_MAX;
use crate::wire::{
    Access, Answer, Attr, ChangeRequest, HandleId, Node, ReadRequest, Request, TRANSFER_BYTES_MAX,
};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why a transfer ended early.
pub(super) enum Broken {
    /// Once more over the next connection.
    Stream(StreamError),
    Errno(Errno),
}

impl From<StreamError> for Broken {
    fn from(error: StreamError) -> Broken {
        Broken::Stream(error)
    }
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Broken {
        Broken::Errno(errno)
    }
}

/// Makes a pull.
pub(super) async fn pull(region: Arc<Region>, pull: Pull) {
    let Some(shared) = region.shared.upgrade() else {
        return;
    };
    let outcome = match shared.link.session().await {
        Ok(session) => {
            let pulled = pull_over(&shared, &region, &session, pull).await;
            outcome_of(&shared, &session, pulled).await
        }
        Err(errno) => Err(Failure::Refused(errno.raw_os_error())),
    };
    pull_ended(&shared, &region, pull, outcome);
}

/// Takes in what follows the answer to [`ReadRequest::OpenAndPull`], as a pull of the first `bytes`, unless they are
/// here.
pub(super) fn take_offer(
    shared: &Shared,
    region: Arc<Region>,
    bytes: u64,
    rest: (Session, quinn::RecvStream),
) {
    let offer = region.update(|inner| {
        let offer = inner.core.handle_offer(bytes);
        inner.pulls += usize::from(offer.is_some());
        offer
    });
    if let Some(pull) = offer {
        (shared.runtime).spawn(take_offered(region, pull, rest));
    }
}

async fn take_offered(
    region: Arc<Region>,
    pull: Pull,
    (session, mut stream): (Session, quinn::RecvStream),
) {
    let Some(shared) = region.shared.upgrade() else {
        return;
    };
    let pulled = receive_pull(&shared, &region, &session, &mut stream, pull).await;
    let outcome = outcome_of(&shared, &session, pulled).await;
    pull_ended(&shared, &region, pull, outcome);
}

/// How a transfer ended; with [`Failure::Link`] it is to be made anew, over the session there is now.
pub(super) async fn outcome_of<R>(
    shared: &Shared,
    session: &Session,
    pulled: std::result::Result<R, Broken>,
) -> std::result::Result<R, Failure> {
    match pulled {
        Ok(pulled) => Ok(pulled),
        Err(Broken::Errno(Errno::STALE | Errno::BADF)) if !is_current(shared, session) => {
            Err(Failure::Link)
        }
        Err(Broken::Errno(errno)) => Err(Failure::Refused(errno.raw_os_error())),
        Err(Broken::Stream(error)) => match shared.link.recover(session, error).await {
            Ok(_) => Err(Failure::Link),
            Err(errno) => Err(Failure::Refused(errno.raw_os_error())),
        },
    }
}

fn pull_ended(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    pull: Pull,
    outcome: std::result::Result<(), Failure>,
) {
    region.pull_ended(pull.id, outcome);
    region.count_copy(shared);
    shared.close_remote_if_idle(region);
}

fn is_current(shared: &Shared, session: &Session) -> bool {
    shared
        .link
        .session_now()
        .is_some_and(|now| now.generation == session.generation)
}

async fn pull_over(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    session: &Session,
    pull: Pull,
) -> std::result::Result<(), Broken> {
    let handle = remote(shared, region, session, Access::Read).await?;
    let request = Request::Read(ReadRequest::Pull {
        handle,
        start: pull.range.start,
        end: pull.range.end,
        demand: pull.demand,
        compress: shared.options.compress,
    });
    let (mut send, mut receive) = link::open(session).await?;
    stream::send(&mut send, &request).await?;
    let _ = send.finish();
    receive_pull(shared, region, session, &mut receive, pull).await
}

/// Takes in the reply to a pull and its frames.
async fn receive_pull(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    session: &Session,
    receive: &mut quinn::RecvStream,
    pull: Pull,
) -> std::result::Result<(), Broken> {
    let (at, answer) = link::answer_of(session, link::receive_reply(receive).await?)?;
    let Answer::Pulled { size, zero_until } = answer else {
        return Err(StreamError::Protocol("no pull in the answer to a pull".into()).into());
    };
    region.node.saw(at);
    region.update(|inner| inner.adopt_size(at, size))?;
    let end = pull.range.end.min(size.max(pull.range.start));
    let mut landing = Landing {
        shared,
        region,
        pull,
        at,
        next: pull.range.start,
        pieces: Vec::new(),
        held: 0,
    };
    while landing.next + landing.held < end {
        let left = end - landing.next - landing.held;
        match stream::receive_frame(receive, left).await? {
            Frame::Data(pieces) => landing.data(pieces, end)?,
            Frame::Zero(len) => landing.zeroes(u64::from(len), end)?,
        }
    }
    let zero_until = zero_until.min(size);
    if zero_until > end && end == pull.range.end {
        let mut wanted = Vec::new();
        let range = ByteRange::new(end, zero_until);
        region.update(|inner| inner.land_zeroes(pull.id, at, range, &mut wanted))?;
    }
    stream::take_end(receive);
    if !pull.demand {
        kernel::put_later(shared, region, pull.range);
    }
    Ok(())
}

/// Lands what arrives page by page: frames need not end where pages do.
struct Landing<'a> {
    shared: &'a Shared,
    region: &'a Arc<Region>,
    pull: Pull,
    at: Moment,
    /// Where `pieces` begin.
    next: u64,
    /// The beginning of a page whose rest has not arrived.
    pieces: Vec<Bytes>,
    held: u64,
}

/// For the part of a page that is zero while the rest is not.
static ZERO_PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

impl Landing<'_> {
    fn data(&mut self, pieces: Vec<Bytes>, end: u64) -> Result<()> {
        self.held += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if self.pieces.is_empty() {
            self.pieces = pieces;
        } else {
            self.pieces.extend(pieces);
        }
        self.land_whole_pages(end)
    }

    fn zeroes(&mut self, len: u64, end: u64) -> Result<()> {
        // Up to a page's end as bytes, the whole pages as zeroes, the rest as bytes again.
        let from = self.next + self.held;
        let until = from + len;
        let head = (from.next_multiple_of(PAGE_BYTES)).min(until) - from;
        if self.held > 0 || head > 0 {
            self.data(vec![Bytes::from_static(&ZERO_PAGE[..head as usize])], end)?;
        }
        let from = from + head;
        let whole = if until == end {
            until
        } else {
            until - until % PAGE_BYTES
        };
        if from < whole {
            let mut wanted = Vec::new();
            let range = ByteRange::new(from, whole);
            let (pull, at) = (self.pull.id, self.at);
            self.count(range);
            self.region.update(|inner| {
                inner.ensure_room(range.end)?;
                inner.land_zeroes(pull, at, range, &mut wanted)
            })?;
            self.next = whole;
        }
        if from.max(whole) < until {
            let tail = (until - from.max(whole)) as usize;
            self.data(vec![Bytes::from_static(&ZERO_PAGE[..tail])], end)?;
        }
        Ok(())
    }

    fn land_whole_pages(&mut self, end: u64) -> Result<()> {
        let until = self.next + self.held;
        let whole = if until == end {
            until
        } else {
            until - until % PAGE_BYTES
        };
        if whole <= self.next {
            return Ok(());
        }
        let range = ByteRange::new(self.next, whole);
        let (pull, at) = (self.pull.id, self.at);
        self.count(range);
        let mut wanted = Vec::new();
        let pieces = &self.pieces;
        self.region
            .update(|inner| inner.land(pull, at, range, pieces, &mut wanted))?;
        self.held = until - whole;
        self.next = whole;
        self.keep_last(self.held as usize);
        Ok(())
    }

    /// Before anybody who waits for it is woken.
    fn count(&self, range: ByteRange) {
        let pulled = &self.shared.pulled_bytes;
        pulled.fetch_add(range.len(), Ordering::Relaxed);
    }

    /// Keeps the last `len` bytes of the pieces.
    fn keep_last(&mut self, len: usize) {
        let mut left = len;
        let mut kept = Vec::new();
        while left > 0 {
            let Some(piece) = self.pieces.pop() else {
                break;
            };
            let from = piece.len().saturating_sub(left);
            left -= piece.len() - from;
            kept.push(piece.slice(from..));
        }
        kept.reverse();
        self.pieces = kept;
    }
}

/// Makes a push.
pub(super) async fn push(region: Arc<Region>, push: Push, generation: u64) {
    let Some(shared) = region.shared.upgrade() else {
        return;
    };
    let _waiting = link::Waiting::new(&shared.link.waiting);
    let outcome = match push_until_answered(&shared, &region, &push, generation).await {
        Ok(None) => Err(Failure::Link),
        Ok(Some((at, attr))) => {
            region.node.adopt_own(&attr, at);
            region.report_cut(region.update(|inner| {
                inner.taken(at, attr.stamp());
                inner.adopt_size(at, attr.size)
            }));
            let bytes: u64 = push.extents.iter().map(ByteRange::len).sum();
            shared.pushed_bytes.fetch_add(bytes, Ordering::Relaxed);
            Ok(at)
        }
        Err(errno) => Err(Failure::Refused(errno.raw_os_error())),
    };
    region.push_ended(&push, outcome);
    shared.close_remote_if_idle(&region);
}

/// `None` where the authority has forgotten this replica since the push began: its bytes may be older by now than
/// what others have pushed, and the core has them pushed anew if they are not.
async fn push_until_answered(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    push: &Push,
    generation: u64,
) -> Result<Option<(Moment, Attr)>> {
    let link = &shared.link;
    let number = link.number_change();
    let mut session = link.session().await?;
    loop {
        if session.generation != generation {
            return Ok(None);
        }
        let handle = match remote(shared, region, &session, Access::Write).await {
            Ok(handle) => handle,
            Err(Broken::Errno(errno)) => return Err(errno),
            Err(Broken::Stream(error)) => {
                session = link.recover(&session, error).await?;
                continue;
            }
        };
        let epoch = region.look(|inner| inner.core.epoch());
        let extents = push.extents.iter().map(|&range| range.into()).collect();
        let request = ChangeRequest::Push {
            handle,
            epoch,
            extents,
        };
        let request = Request::Change(number.sequence(), request);
        match push_over(shared, region, &session, push, &request).await {
            Ok((at, Answer::Attr(attr))) => return Ok(Some((at, attr))),
            Ok(_) => return Err(Errno::PROTO),
            Err(Broken::Errno(errno)) => return Err(errno),
            Err(Broken::Stream(error)) => session = link.recover(&session, error).await?,
        }
    }
}

async fn push_over(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    session: &Session,
    push: &Push,
    request: &Request,
) -> std::result::Result<(Moment, Answer), Broken> {
    let (mut send, mut receive) = link::open(session).await?;
    match send_push(shared, region, &mut send, push, request).await {
        // Answered before all of it was sent: the reply tells why.
        Ok(()) | Err(Broken::Stream(StreamError::Stopped)) => {}
        Err(broken) => return Err(broken),
    }
    let reply = link::receive_reply(&mut receive).await?;
    stream::take_end(&mut receive);
    Ok(link::answer_of(session, reply)?)
}

async fn send_push(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    send: &mut quinn::SendStream,
    push: &Push,
    request: &Request,
) -> std::result::Result<(), Broken> {
    stream::send(send, request).await?;
    for extent in &push.extents {
        let mut start = extent.start;
        while start < extent.end {
            let end = extent.end.min(start + u64::from(FRAME_BYTES_MAX));
            let bytes = region.look(|inner| {
                let len = (end - start) as usize;
                inner.copy.with_bytes(start, len, Bytes::copy_from_slice)
            });
            let bytes = bytes.map_err(super::region::io_errno)?;
            stream::send_frame(send, bytes, shared.options.compress).await?;
            start = end;
        }
    }
    let _ = send.finish();
    Ok(())
}

/// The bytes of a file that are at the authority, without a region: those in `range`, to the end of the file.
pub(super) async fn read_there(shared: &Shared, node: Node, range: ByteRange) -> Result<Vec<u8>> {
    let access = Access::Read;
    let opened = shared.link.read(ReadRequest::Open { node, access }).await?;
    let (_, Answer::Opened { handle, attr, .. }) = opened else {
        return Err(Errno::PROTO);
    };
    let session = shared.link.session().await?;
    let range = ByteRange::new(range.start, range.end.min(attr.size));
    let bytes = read_open(&session, handle, range).await;
    let closed = shared.link.read(ReadRequest::Close { handle }).await;
    let bytes = bytes.map_err(|broken| match broken {
        Broken::Errno(errno) => errno,
        Broken::Stream(_) => Errno::IO,
    });
    closed.and(bytes.map(|(_, _, bytes)| bytes))
}

/// Bytes of an open file, to its end; with when that was, and the size then.
pub(super) async fn read_open(
    session: &Session,
    handle: HandleId,
    range: ByteRange,
) -> std::result::Result<(Moment, u64, Vec<u8>), Broken> {
    let mut bytes = Vec::new();
    let request = Request::Read(ReadRequest::Pull {
        handle,
        start: range.start,
        end: range.end,
        demand: true,
        compress: true,
    });
    let (mut send, mut receive) = link::open(session).await?;
    stream::send(&mut send, &request).await?;
    let _ = send.finish();
    let reply = link::receive_reply(&mut receive).await?;
    let (at, answer) = link::answer_of(session, reply)?;
    let Answer::Pulled { size, .. } = answer else {
        return Err(Errno::PROTO.into());
    };
    let len = range.end.min(size.max(range.start)) - range.start;
    while (bytes.len() as u64) < len {
        let left = len - bytes.len() as u64;
        match stream::receive_frame(&mut receive, left).await? {
            Frame::Data(pieces) => pieces
                .iter()
                .for_each(|piece| bytes.extend_from_slice(piece)),
            Frame::Zero(zeroes) => bytes.resize(bytes.len() + zeroes as usize, 0),
        }
    }
    stream::take_end(&mut receive);
    Ok((at, size, bytes))
}

/// The authority's handle of a region, good for `access`, opened if need be.
pub(super) async fn remote(
    shared: &Arc<Shared>,
    region: &Arc<Region>,
    session: &Session,
    access: Access,
) -> std::result::Result<HandleId, Broken> {
    let mut remote = region.remote.lock().await;
    if let Some(remote) = &*remote
        && remote.generation == session.generation
        && remote.access >= access
    {
        return Ok(remote.handle);
    }
    let request = ReadRequest::Open {
        node: region.node.to_wire()?,
        access,
    };
    let reply = link::exchange(session, &Request::Read(request)).await?;
    let (at, answer) = link::answer_of(session, reply)?;
    region.node.saw(at);
    let Answer::Opened { handle, .. } = answer else {
        return Err(StreamError::Protocol("no handle in the answer to open".into()).into());
    };
    if let Some(old) = remote.replace(Remote {
        handle,
        access,
        generation: session.generation,
    }) {
        shared.close_remote(old);
    }
    Ok(handle)
}

const _: () = assert!(FRAME_BYTES_MAX as u64 <= TRANSFER_BYTES_MAX);
