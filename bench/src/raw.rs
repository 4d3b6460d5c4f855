//! `memfs-bench raw-serve` and `raw`: a bare QUIC transfer with memfs's own transport settings, which is
//! the limit that encryption and UDP set to all that memfs can do.
//!
//! A request is one stream: a byte for the direction and the number of bytes, then those bytes the one
//! way or the other. What is sent comes from one buffer, and what comes is counted and let go. A
//! transfer to the server ends when the server has said that it has everything.
//!
//! Exchanges are requests for a page, one after the other: the least that a fault can take.

use crate::workloads::Latencies;
use bytes::Bytes;
use memfs::transport::{
    Authorized, CONNECTION_WINDOW_BYTES, Dialer, Identity, Listener, ServerTrust,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How much is handed over at once.
const CHUNK_BYTES: usize = 1 << 20;
/// For a connection.
const PATIENCE: Duration = Duration::from_secs(10);
const TO_CLIENT: u8 = 0;
const TO_SERVER: u8 = 1;

/// Serve bare transfers
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Where to listen
    listen: SocketAddr,
    /// The key of both sides
    identity: PathBuf,
}

/// Transfer bytes and print how many seconds it took
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server
    server: SocketAddr,
    /// The key of both sides
    identity: PathBuf,
    /// How many bytes
    bytes: u64,
    /// To the server instead of from it
    #[arg(long)]
    write: bool,
    /// Again and again for so many milliseconds, a stream each time; prints what [`Latencies`] does
    #[arg(long)]
    exchange: Option<u64>,
    /// So many exchanges at once
    #[arg(long, default_value_t = 1)]
    tasks: usize,
}

/// Serves until it is killed.
///
/// # Errors
/// One line.
pub fn serve(args: &ServeArgs) -> Result<(), String> {
    runtime()?.block_on(async {
        let identity = load(&args.identity)?;
        let authorized = Authorized::Keys(vec![identity.public()]);
        let listener = Listener::new(args.listen, &identity, authorized);
        let listener = listener.map_err(|e| format!("{}: {e}", args.listen))?;
        println!("memfs-bench: raw on {}", args.listen);
        while let Some((connection, ..)) = listener.accept().await {
            connection.set_receive_window(CONNECTION_WINDOW_BYTES.into());
            tokio::spawn(async move {
                while let Ok((send, receive)) = connection.accept_bi().await {
                    tokio::spawn(async move {
                        if let Err(error) = answer(send, receive).await {
                            eprintln!("memfs-bench: {error}");
                        }
                    });
                }
            });
        }
        Ok(())
    })
}

async fn answer(mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Result<(), Error> {
    let mut request = [0; 9];
    receive.read_exact(&mut request).await?;
    let [direction, count @ ..] = request;
    let count = u64::from_le_bytes(count);
    match direction {
        TO_SERVER => {
            drain(&mut receive, count).await?;
            send.write_all(&[1]).await?;
        }
        _ => fill(&mut send, count).await?,
    }
    send.finish()?;
    Ok(ended(&mut receive).await?)
}

/// Takes the end of a stream: who lets go of it before is taken not to want the rest, and says so in a packet.
async fn ended(receive: &mut quinn::RecvStream) -> Result<(), quinn::ReadError> {
    receive.read_chunk(1, true).await.map(drop)
}

/// Makes one transfer and prints its seconds, or exchanges.
///
/// # Errors
/// One line.
pub fn transfer(args: &Args) -> Result<(), String> {
    let printed = runtime()?.block_on(async {
        let identity = load(&args.identity)?;
        let trust = ServerTrust::Key(identity.public());
        let host = args.server.ip().to_string();
        let dialer = Dialer::new(&host, args.server.port(), identity, trust);
        let dialer = dialer.map_err(|e| e.to_string())?;
        let connection = dialer.connect(PATIENCE).await.map_err(|e| e.to_string())?;
        let outcome = match args.exchange {
            Some(millis) => exchanges(&connection, args, Duration::from_millis(millis)).await,
            None => seconds(&connection, args).await,
        };
        connection.close(0_u32.into(), b"done");
        dialer.wait_closed().await;
        outcome.map_err(|e| e.to_string())
    })?;
    println!("{printed}");
    Ok(())
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn seconds(connection: &quinn::Connection, args: &Args) -> Result<String, Error> {
    let begin = Instant::now();
    ask(connection, args.bytes, args.write).await?;
    Ok(begin.elapsed().as_secs_f64().to_string())
}

async fn exchanges(
    connection: &quinn::Connection,
    args: &Args,
    longest: Duration,
) -> Result<String, Error> {
    let (bytes, write) = (args.bytes, args.write);
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..args.tasks {
        let connection = connection.clone();
        tasks.spawn(async move {
            let (mut nanos, mut now) = (Vec::new(), begin);
            while now - begin < longest {
                ask(&connection, bytes, write).await?;
                let then = std::mem::replace(&mut now, Instant::now());
                nanos.push((now - then).as_nanos() as u64);
            }
            Ok::<_, Error>(nanos)
        });
    }
    let mut nanos = Vec::new();
    while let Some(done) = tasks.join_next().await {
        nanos.extend(done??);
    }
    Ok(Latencies::new(nanos, begin.elapsed())
        .ok_or("no exchange")?
        .to_string())
}

async fn ask(connection: &quinn::Connection, bytes: u64, write: bool) -> Result<(), Error> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let mut request = [if write { TO_SERVER } else { TO_CLIENT }; 9];
    request[1..].copy_from_slice(&bytes.to_le_bytes());
    send.write_all(&request).await?;
    if write {
        fill(&mut send, bytes).await?;
    }
    send.finish()?;
    drain(&mut receive, if write { 1 } else { bytes }).await?;
    Ok(ended(&mut receive).await?)
}

async fn fill(send: &mut quinn::SendStream, mut left: u64) -> Result<(), quinn::WriteError> {
    let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
    while left > 0 {
        let len = left.min(CHUNK_BYTES as u64);
        send.write_chunk(chunk.slice(..len as usize)).await?;
        left -= len;
    }
    Ok(())
}

async fn drain(receive: &mut quinn::RecvStream, mut left: u64) -> Result<(), Error> {
    while left > 0 {
        let want = left.min(CHUNK_BYTES as u64) as usize;
        let chunk = receive.read_chunk(want, true).await?;
        left -= chunk.ok_or("the other side ended early")?.bytes.len() as u64;
    }
    Ok(())
}

fn load(path: &Path) -> Result<Identity, String> {
    Identity::load_or_create(path).map_err(|e| e.to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Runtime::new().map_err(|e| e.to_string())
}
