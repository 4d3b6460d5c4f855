//! The scene of an attack: a server that is a program of its own, an honest mount of it, and attackers who speak
//! the wire and nothing more.

use crate::common::{Home, Mount, Serve, wait_until};
use memfs::region::{ClientId, Epoch};
use memfs::transport::{Authorized, Dialer, Grant, Identity, ServerTrust, stream};
use memfs::wire::*;
use quinn::{Connection, RecvStream, SendStream};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const BY: Caller = Caller { uid: 0, gid: 0 };
/// The epoch of every region.
pub const EPOCH: Epoch = Epoch(1);
/// Why a server closes a connection that breaks the protocol.
pub const CLOSE_PROTOCOL: u32 = 16;

/// What a process takes.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Memory of its own, in bytes.
    pub memory: u64,
    /// Open files.
    pub descriptors: usize,
}

/// Fields are dropped in this order.
pub struct Scene<'a> {
    pub mount: Mount<'a>,
    pub serve: Serve,
    pub home: &'a Home,
    /// Whom the server lets in, and who attacks.
    pub key: Identity,
}

impl<'a> Scene<'a> {
    pub fn new(home: &'a Home) -> Scene<'a> {
        Scene::granting(home, &Grant::default())
    }

    /// With an attacker whose key is let in for this.
    pub fn granting(home: &'a Home, grant: &Grant) -> Scene<'a> {
        Scene::with_limit(home, grant, None)
    }

    /// With a server that may have so many files open.
    pub fn with_limit(home: &'a Home, grant: &Grant, files_max: Option<u64>) -> Scene<'a> {
        let served = home.folder("served");
        let key = Identity::generate();
        let authorized = home.path("home/.config/memfs/authorized_keys");
        assert!(Authorized::authorize(&authorized, &key.public(), grant, "").unwrap());
        let serve = Serve::with_limit(home, served, files_max);
        let mount = Mount::start(home, &serve, "mnt");
        let scene = Scene {
            mount,
            serve,
            home,
            key,
        };
        scene.honest();
        scene
    }

    /// Where something that is served is.
    pub fn served(&self, name: &str) -> PathBuf {
        self.home.path("served").join(name)
    }

    /// The honest mount is served: what it writes arrives, what is new is found.
    #[track_caller]
    pub fn honest(&self) {
        static ROUND: AtomicU64 = AtomicU64::new(0);
        let round = ROUND.fetch_add(1, Ordering::Relaxed);
        let (out, back) = (format!("out-{round}"), format!("back-{round}"));
        // Closing pushes.
        fs::write(self.mount.path(&out), &out).unwrap();
        assert_eq!(fs::read_to_string(self.served(&out)).unwrap(), out);
        fs::write(self.served(&back), &back).unwrap();
        wait_until("what is new is found", || {
            fs::read_to_string(self.mount.path(&back)).is_ok_and(|found| found == back)
        });
        for name in [out, back] {
            fs::remove_file(self.mount.path(&name)).unwrap();
        }
    }

    /// What the server takes now.
    pub fn taken(&self) -> Use {
        let pid = self.serve.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        Use {
            memory: kib << 10,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        }
    }

    /// The server serves, and has taken no more memory than this since.
    #[track_caller]
    pub fn is_well(&self, before: Use, memory_max: u64) {
        self.honest();
        let now = self.taken();
        let more = now.memory.saturating_sub(before.memory);
        assert!(more <= memory_max, "{more} bytes more: {before:?}, {now:?}");
    }

    /// It gets back to as many descriptors as it had.
    #[track_caller]
    pub fn gives_back(&self, before: Use) {
        // A listing under way may keep one open for a while.
        self.gives_back_but(before, 2);
    }

    /// But for so many.
    #[track_caller]
    pub fn gives_back_but(&self, before: Use, more: usize) {
        let limit = before.descriptors + more;
        wait_until("descriptors are given back", || {
            self.taken().descriptors <= limit
        });
    }

    pub fn dialer(&self, key: &Identity) -> Dialer {
        let (host, port) = self.serve.address.rsplit_once(':').unwrap();
        let trust = ServerTrust::Fingerprint(self.serve.key.clone());
        Dialer::new(host, port.parse().unwrap(), key.clone(), trust).unwrap()
    }

    /// A connection of the attacker on which nothing was said.
    pub async fn connect(&self) -> Connection {
        self.dialer(&self.key).connect(PATIENCE).await.unwrap()
    }

    /// An attacker that was let in, and takes in what it is told.
    pub async fn attacker(&self) -> Attacker {
        self.hello(&self.key, hello()).await.unwrap()
    }

    /// With another key.
    pub async fn hello(&self, key: &Identity, hello: Hello) -> Result<Attacker, Refusal> {
        let deaf = self.deaf(key, hello).await?;
        Ok(deaf.listening())
    }

    /// An attacker that never says a word on its control stream again.
    pub async fn deaf(&self, key: &Identity, hello: Hello) -> Result<Deaf, Refusal> {
        let connection = self.dialer(key).connect(PATIENCE).await.unwrap();
        greet(connection, hello).await
    }

    /// One whose datagrams go by way of this address.
    pub async fn deaf_through(&self, address: SocketAddr) -> Deaf {
        let trust = ServerTrust::Fingerprint(self.serve.key.clone());
        let (host, port) = (address.ip().to_string(), address.port());
        let dialer = Dialer::new(&host, port, self.key.clone(), trust).unwrap();
        let connection = dialer.connect(PATIENCE).await.unwrap();
        greet(connection, hello()).await.unwrap()
    }

    /// The key of the server, which is that of the honest mount as well.
    pub fn own_key(&self) -> Identity {
        Identity::load_or_create(&self.home.path("home/.config/memfs/identity")).unwrap()
    }
}

/// Says hello on a fresh connection.
pub async fn greet(connection: Connection, hello: Hello) -> Result<Deaf, Refusal> {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    stream::send(&mut send, &hello).await.unwrap();
    match stream::receive(&mut receive).await.unwrap().unwrap() {
        HelloReply::Welcome(welcome) => Ok(Deaf {
            attacker: Attacker {
                connection,
                welcome,
                control: Arc::new(Mutex::new(send)),
            },
            receive,
        }),
        HelloReply::Refused(refusal) => Err(refusal),
    }
}

/// With a client id that nobody has had.
pub fn hello() -> Hello {
    static CLIENTS: AtomicU64 = AtomicU64::new(1);
    let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
    let mut client = [0xaa; 16];
    client[..8].copy_from_slice(&number.to_le_bytes());
    Hello {
        oldest: Version::OLDEST as u16,
        newest: Version::NEWEST as u16,
        client: ClientId(client),
        subtree: RelPath::root(),
        read_only: false,
        listing: false,
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn at(id: FileId, path: &str) -> Node {
    let path = RelPath::new(path).unwrap();
    Node { id, path }
}

/// A client that was let in and does as it likes.
pub struct Attacker {
    pub connection: Connection,
    pub welcome: Welcome,
    pub control: Arc<Mutex<SendStream>>,
}

/// One that does not read what it is told.
pub struct Deaf {
    pub attacker: Attacker,
    pub receive: RecvStream,
}

impl Deaf {
    /// From now on it keeps its lease and takes in what it is told, as long as it is connected.
    pub fn listening(mut self) -> Attacker {
        let control = self.attacker.control.clone();
        tokio::spawn(async move {
            while let Ok(Some(event)) = stream::receive(&mut self.receive).await {
                if let AuthorityEvent::Invalidate { change, .. } = event {
                    let taken = ReplicaEvent::Taken { change };
                    let _ = stream::send(&mut *control.lock().await, &taken).await;
                }
            }
        });
        let control = self.attacker.control.clone();
        tokio::spawn(async move {
            for sent in 1.. {
                tokio::time::sleep(Duration::from_secs(2)).await; // a fifth of a lease
                let renew = ReplicaEvent::Renew { sent };
                if stream::send(&mut *control.lock().await, &renew)
                    .await
                    .is_err()
                {
                    break;
                }
            }
        });
        self.attacker
    }
}

impl Attacker {
    pub fn root(&self) -> Node {
        at(self.welcome.root.id, "")
    }

    /// Says goodbye, and waits until the server has heard it, if it still listens.
    pub async fn leave(self) {
        let mut control = self.control.lock().await;
        let _ = stream::send(&mut control, &ReplicaEvent::Goodbye).await;
        self.connection.closed().await;
    }

    pub async fn tell(&self, event: ReplicaEvent) {
        let mut control = self.control.lock().await;
        stream::send(&mut control, &event).await.unwrap();
    }

    /// A stream on which this request was sent, not finished.
    pub async fn ask(&self, request: &Request) -> (SendStream, RecvStream) {
        let (mut send, receive) = self.connection.open_bi().await.unwrap();
        stream::send(&mut send, request).await.unwrap();
        (send, receive)
    }

    pub async fn exchange(&self, request: Request) -> Result<Answer, i32> {
        let (mut send, mut receive) = self.ask(&request).await;
        send.finish().unwrap();
        let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
        reply.result
    }

    pub async fn read(&self, request: ReadRequest) -> Result<Answer, i32> {
        self.exchange(Request::Read(request)).await
    }

    pub async fn change(&self, request: ChangeRequest) -> Result<Answer, i32> {
        self.exchange(Request::Change(sequence(), request)).await
    }

    pub async fn look_up(&self, dir: &Node, text: &str) -> Result<Attr, i32> {
        let (dir, name) = (dir.clone(), name(text));
        match self.read(ReadRequest::Lookup { dir, name }).await? {
            Answer::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub async fn open(&self, node: &Node, access: Access) -> Result<HandleId, i32> {
        let node = node.clone();
        match self.read(ReadRequest::Open { node, access }).await? {
            Answer::Opened { handle, .. } => Ok(handle),
            other => panic!("{other:?}"),
        }
    }

    pub async fn create(&self, text: &str) -> Result<(HandleId, Node), i32> {
        let request = ChangeRequest::Create {
            dir: self.root(),
            name: name(text),
            mode: 0o600,
            exclusive: true,
            by: BY,
        };
        match self.change(request).await? {
            Answer::Opened { handle, attr, .. } => Ok((handle, at(attr.id, text))),
            other => panic!("{other:?}"),
        }
    }

    /// A push of one extent, as one frame.
    pub async fn push(&self, handle: HandleId, start: u64, bytes: &[u8]) -> Result<Answer, i32> {
        let end = start + bytes.len() as u64;
        let request = push(handle, vec![Extent { start, end }]);
        let (mut send, mut receive) = self.ask(&request).await;
        let frame = bytes::Bytes::copy_from_slice(bytes);
        stream::send_frame(&mut send, frame, false).await.unwrap();
        send.finish().unwrap();
        let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
        reply.result
    }

    /// The whole content of a file by its handle.
    pub async fn pull(&self, handle: HandleId, start: u64, end: u64) -> Result<Vec<u8>, i32> {
        let (mut send, mut receive) = self.ask(&pull(handle, start, end)).await;
        send.finish().unwrap();
        let reply: Reply = stream::receive(&mut receive).await.unwrap().unwrap();
        let Answer::Pulled { size, .. } = reply.result? else {
            panic!("no pull");
        };
        let mut bytes = Vec::new();
        let len = end.min(size).saturating_sub(start);
        while (bytes.len() as u64) < len {
            let left = len - bytes.len() as u64;
            match stream::receive_frame(&mut receive, left).await.unwrap() {
                stream::Frame::Data(pieces) => bytes.extend(pieces.concat()),
                stream::Frame::Zero(len) => bytes.resize(bytes.len() + len as usize, 0),
            }
        }
        Ok(bytes)
    }
}

pub fn sequence() -> Sequence {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    Sequence {
        number: NUMBERS.fetch_add(1, Ordering::Relaxed),
        answered: 0,
    }
}

pub fn push(handle: HandleId, extents: Vec<Extent>) -> Request {
    let request = ChangeRequest::Push {
        handle,
        epoch: EPOCH,
        extents,
    };
    Request::Change(sequence(), request)
}

pub fn pull(handle: HandleId, start: u64, end: u64) -> Request {
    Request::Read(ReadRequest::Pull {
        handle,
        start,
        end,
        demand: true,
        compress: false,
    })
}

/// That the server has closed a connection for breaking the protocol.
pub async fn closed(connection: &Connection) {
    match connection.closed().await {
        // Where what is under way leaves no room for saying why.
        quinn::ConnectionError::Reset => {}
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code, CLOSE_PROTOCOL.into());
        }
        other => panic!("{other}"),
    }
}
