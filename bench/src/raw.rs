//! `memfs-bench raw-serve` and `raw`: a bare QUIC transfer with memfs's own transport settings, which is
//! the limit that encryption and UDP set to all that memfs can do.
//!
//! A request is one stream: a byte for the direction and the number of bytes, then those bytes the one
//! way or the other. What is sent comes from one buffer, and what comes is counted and let go. A
//! transfer to the server ends when the server has said that it has everything.

use bytes::Bytes;
use memfs::transport::{
    Authorized, CONNECTION_WINDOW_BYTES, Dialer, Identity, Listener, ServerTrust,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
                    if let Err(error) = answer(send, receive).await {
                        eprintln!("memfs-bench: {error}");
                    }
                }
            });
        }
        Ok(())
    })
}

async fn answer(
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
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
    send.stopped().await?;
    Ok(())
}

/// Makes one transfer and prints its seconds.
///
/// # Errors
/// One line.
pub fn transfer(args: &Args) -> Result<(), String> {
    let seconds = runtime()?.block_on(async {
        let identity = load(&args.identity)?;
        let trust = ServerTrust::Key(identity.public());
        let host = args.server.ip().to_string();
        let dialer = Dialer::new(&host, args.server.port(), identity, trust);
        let dialer = dialer.map_err(|e| e.to_string())?;
        let connection = dialer.connect(PATIENCE).await.map_err(|e| e.to_string())?;
        let begin = Instant::now();
        let outcome = ask(&connection, args).await.map_err(|e| e.to_string());
        let seconds = begin.elapsed().as_secs_f64();
        connection.close(0_u32.into(), b"done");
        dialer.wait_closed().await;
        outcome.map(|()| seconds)
    })?;
    println!("{seconds}");
    Ok(())
}

async fn ask(
    connection: &quinn::Connection,
    args: &Args,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&[if args.write { TO_SERVER } else { TO_CLIENT }])
        .await?;
    send.write_all(&args.bytes.to_le_bytes()).await?;
    if args.write {
        fill(&mut send, args.bytes).await?;
        drain(&mut receive, 1).await?;
    } else {
        drain(&mut receive, args.bytes).await?;
    }
    Ok(())
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

async fn drain(
    receive: &mut quinn::RecvStream,
    mut left: u64,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
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
