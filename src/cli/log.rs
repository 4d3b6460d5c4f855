//! Log messages: to stderr or to a file, as `MEMFS_LOG` or `-v` ask for.

use std::path::Path;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;

/// The variable that names what is logged, as tracing-subscriber's `EnvFilter` reads it.
const VARIABLE: &str = "MEMFS_LOG";

/// From here on messages are written; to be called once.
///
/// # Errors
/// One line for the user.
pub fn start(verbose: u8, file: Option<&Path>) -> Result<(), String> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|e| format!("{VARIABLE}={text}: {e}"))?,
        Err(_) => EnvFilter::new(match verbose {
            // A program that went away while it waited is all that fuser complains of.
            0 => "warn,fuser=off",
            1 => "info,fuser=off",
            2 => "info,memfs=debug",
            _ => "trace",
        }),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false);
    let started = match file {
        None => builder.with_writer(std::io::stderr).try_init(),
        Some(path) => {
            let file = std::fs::File::options()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|e| format!("--log {}: {e}", path.display()))?;
            builder.with_writer(Mutex::new(file)).try_init()
        }
    };
    started.map_err(|e| e.to_string())
}
