//! A server with a store of its own, and a client that speaks the wire and nothing more.

use crate::node::authority::{AuthorityOptions, serve};
use crate::region::{ClientId, Epoch, Tick};
use crate::store::Store;
use crate::store::memory::Memory;
use crate::transport::stream::{self, Frame};
use crate::transport::{Authorized, Dialer, Identity, Listener, ServerTrust};
use crate::wire::*;
use quinn::{Connection, RecvStream, SendStream};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// An authority that serves.
pub struct Server {
    pub listener: Arc<Listener>,
    pub serving: JoinHandle<()>,
    identity: Identity,
    /// The key it lets in, besides `other`.
    pub key: Identity,
    pub other: Identity,
}

impl Server {
    pub fn new(store: impl Store, options: AuthorityOptions) -> Server {
        Server::over(Arc::new(store), options)
    }

    pub fn over(store: Arc<dyn Store>, options: AuthorityOptions) -> Server {
        let [identity, key, other] = [(); 3].map(|()| Identity::generate());
        let authorized = Authorized::Keys(vec![key.public(), other.public()]);
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = Arc::new(Listener::new(address, &identity, authorized).unwrap());
        let serving = tokio::spawn(serve(listener.clone(), store, options));
        Server {
            listener,
            serving,
            identity,
            key,
            other,
        }
    }

    pub fn in_memory() -> Server {
        Server::new(Memory::new(1 << 30), AuthorityOptions::default())
    }

    /// With leases of this length.
    pub fn leasing(lease: Duration) -> Server {
        let options = AuthorityOptions {
            lease,
            ..AuthorityOptions::default()
        };
        Server::new(Memory::new(1 << 30), options)
    }

    pub fn dialer(&self, key: &Identity) -> Dialer {
        let port = self.listener.address().unwrap().port();
        let trust = ServerTrust::Key(self.identity.public());
        Dialer::new("127.0.0.1", port, key.clone(), trust).unwrap()
    }

    /// A connection with this key on which nothing was said.
    pub async fn connect(&self, key: &Identity) -> Connection {
        self.dialer(key).connect(PATIENCE).await.unwrap()
    }

    /// The client with this number, let in.
    pub async fn client(&self, number: u8) -> Client {
        self.hello(&self.key, hello(number)).await.unwrap()
    }

    pub async fn hello(&self, key: &Identity, hello: Hello) -> Result<Client, Refusal> {
        let connection = self.connect(key).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        stream::send(&mut send, &hello).await.unwrap();
        match stream::receive(&mut receive).await.unwrap().unwrap() {
            HelloReply::Welcome(welcome) => Ok(Client {
                connection,
                welcome,
                control: Mutex::new((send, receive)),
            }),
            HelloReply::Refused(refusal) => Err(refusal),
        }
    }
}

pub fn hello(number: u8) -> Hello {
    Hello {
        oldest: Version::OLDEST as u16,
        newest: Version::NEWEST as u16,
        client: ClientId([number; 16]),
        subtree: RelPath::root(),
        read_only: false,
        listing: false,
    }
}

/// A client that was let in.
pub struct Client {
    pub connection: Connection,
    pub welcome: Welcome,
    control: Mutex<(SendStream, RecvStream)>,
}

/// Numbers for changes and renewals, which go on over the connections of a client.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

pub const BY: Caller = Caller { uid: 0, gid: 0 };
/// The epoch of every region.
pub const EPOCH: Epoch = Epoch(1);

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A node where its attributes say it is.
pub fn node(attr: &Attr, path: &str) -> Node {
    Node {
        id: attr.id,
        path: RelPath::new(path).unwrap(),
    }
}

impl Client {
    pub fn root(&self) -> Node {
        node(&self.welcome.root, "")
    }

    /// Its control stream, to say anything on.
    pub fn into_control(self) -> ((SendStream, RecvStream), Connection) {
        (self.control.into_inner(), self.connection)
    }

    pub async fn tell(&self, event: ReplicaEvent) {
        let mut control = self.control.lock().await;
        stream::send(&mut control.0, &event).await.unwrap();
    }

    /// The next event from the authority.
    pub async fn event(&self) -> AuthorityEvent {
        let mut control = self.control.lock().await;
        stream::receive(&mut control.1).await.unwrap().unwrap()
    }

    /// The next event, which has to be an invalidation.
    pub async fn stale(&self) -> (u64, FileId, Tick, Stale) {
        match self.event().await {
            AuthorityEvent::Invalidate {
                change,
                id,
                at,
                what,
            } => (change, id, at, what),
            other => panic!("{other:?}"),
        }
    }

    /// Takes in the next invalidation.
    pub async fn take(&self) -> (FileId, Stale) {
        let (change, id, _, what) = self.stale().await;
        self.tell(ReplicaEvent::Taken { change }).await;
        (id, what)
    }

    /// Everything said so far was taken in by the authority, and whatever it had to say has arrived: the
    /// events before the answer to a renewal.
    pub async fn settle(&self) -> Vec<(FileId, Stale)> {
        let sent = NUMBERS.fetch_add(1, Ordering::Relaxed);
        self.tell(ReplicaEvent::Renew { sent }).await;
        let mut stale = Vec::new();
        loop {
            match self.event().await {
                AuthorityEvent::Renewed { sent: renewed } if renewed == sent => return stale,
                AuthorityEvent::Renewed { .. } => {}
                AuthorityEvent::Invalidate {
                    change, id, what, ..
                } => {
                    self.tell(ReplicaEvent::Taken { change }).await;
                    stale.push((id, what));
                }
            }
        }
    }

    /// A stream on which this request was sent, not finished.
    pub async fn ask(&self, request: &Request) -> (SendStream, RecvStream) {
        let (mut send, receive) = self.connection.open_bi().await.unwrap();
        stream::send(&mut send, request).await.unwrap();
        (send, receive)
    }

    pub async fn exchange(&self, request: Request) -> Reply {
        let (mut send, mut receive) = self.ask(&request).await;
        send.finish().unwrap();
        stream::receive(&mut receive).await.unwrap().unwrap()
    }

    pub async fn read(&self, request: ReadRequest) -> Result<Answer, i32> {
        self.exchange(Request::Read(request)).await.result
    }

    pub fn sequence(&self) -> Sequence {
        Sequence {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            answered: 0,
        }
    }

    pub async fn change(&self, request: ChangeRequest) -> Result<Answer, i32> {
        let request = Request::Change(self.sequence(), request);
        self.exchange(request).await.result
    }

    pub async fn attr(&self, request: ReadRequest) -> Attr {
        attr(self.read(request).await)
    }

    pub async fn look_up(&self, dir: &Node, text: &str) -> Result<Attr, i32> {
        let request = ReadRequest::Lookup {
            dir: dir.clone(),
            name: name(text),
        };
        self.read(request).await.map(|answer| attr(Ok(answer)))
    }

    pub async fn create(&self, text: &str) -> (HandleId, Node) {
        let request = ChangeRequest::Create {
            dir: self.root(),
            name: name(text),
            mode: 0o644,
            exclusive: true,
            by: BY,
        };
        let (handle, attr) = opened(self.change(request).await);
        (handle, node(&attr, text))
    }

    pub async fn open(&self, node: &Node, access: Access) -> (HandleId, Attr) {
        let node = node.clone();
        opened(self.read(ReadRequest::Open { node, access }).await)
    }

    pub async fn list(&self, dir: &Node, cursor: u64) -> Vec<DirEntry> {
        let dir = dir.clone();
        let xattrs = cursor.is_multiple_of(2);
        let request = ReadRequest::ReadDir {
            dir,
            cursor,
            xattrs,
        };
        match self.read(request).await {
            Ok(Answer::Entries(entries)) => entries,
            other => panic!("{other:?}"),
        }
    }

    /// A push of one extent.
    pub async fn push(&self, handle: HandleId, start: u64, bytes: &[u8]) -> Result<Attr, i32> {
        let end = start + bytes.len() as u64;
        let extents = vec![Extent { start, end }];
        let (_, reply) = self.push_all(self.sequence(), handle, extents, bytes).await;
        reply.result.map(|answer| attr(Ok(answer)))
    }

    pub async fn push_all(
        &self,
        sequence: Sequence,
        handle: HandleId,
        extents: Vec<Extent>,
        bytes: &[u8],
    ) -> (Sequence, Reply) {
        let request = ChangeRequest::Push {
            handle,
            epoch: EPOCH,
            extents,
        };
        let (mut send, mut receive) = self.ask(&Request::Change(sequence, request)).await;
        for frame in bytes.chunks(frame::FRAME_BYTES_MAX as usize) {
            let frame = bytes::Bytes::copy_from_slice(frame);
            stream::send_frame(&mut send, frame, true).await.unwrap();
        }
        send.finish().unwrap();
        let reply = stream::receive(&mut receive).await.unwrap().unwrap();
        (sequence, reply)
    }

    /// Size, end of zeroes, and the frames.
    pub async fn pull(
        &self,
        handle: HandleId,
        start: u64,
        end: u64,
    ) -> Result<(u64, u64, Vec<Frame>), i32> {
        let request = ReadRequest::Pull {
            handle,
            start,
            end,
            demand: start.is_multiple_of(2),
            compress: false,
        };
        let (mut send, mut receive) = self.ask(&Request::Read(request)).await;
        send.finish().unwrap();
        let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
        let Answer::Pulled { size, zero_until } = reply.result? else {
            panic!("no pull");
        };
        let mut at = start;
        let mut frames = Vec::new();
        while at < end.min(size) {
            let frame = stream::receive_frame(&mut receive, end.min(size) - at);
            let frame = frame.await.unwrap();
            at += len(&frame);
            frames.push(frame);
        }
        assert_eq!(receive.read_chunk(1, true).await.unwrap(), None, "too much");
        Ok((size, zero_until, frames))
    }

    pub async fn bytes(&self, handle: HandleId, start: u64, end: u64) -> Vec<u8> {
        let (_, _, frames) = self.pull(handle, start, end).await.unwrap();
        let plain = |frame| match frame {
            Frame::Data(pieces) => pieces.concat(),
            Frame::Zero(len) => vec![0; len as usize],
        };
        frames.into_iter().flat_map(plain).collect()
    }
}

pub fn len(frame: &Frame) -> u64 {
    match frame {
        Frame::Data(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
        Frame::Zero(len) => u64::from(*len),
    }
}

pub fn attr(answer: Result<Answer, i32>) -> Attr {
    match answer {
        Ok(Answer::Attr(attr)) => attr,
        other => panic!("{other:?}"),
    }
}

pub fn opened(answer: Result<Answer, i32>) -> (HandleId, Attr) {
    match answer {
        Ok(Answer::Opened {
            handle,
            attr,
            epoch,
            ..
        }) => {
            assert_eq!(epoch, EPOCH);
            (handle, attr)
        }
        other => panic!("{other:?}"),
    }
}

/// Stale from here to the end.
pub fn bytes_from(start: u64) -> Stale {
    let end = u64::MAX;
    Stale::Bytes { start, end }
}
