//! The authority's service: lets replicas in, answers their requests from a store, and tells them of
//! changes.

use crate::store::Store;
use crate::transport::Listener;
use std::sync::Arc;
use std::time::Duration;

/// How an authority serves.
#[derive(Clone, Debug)]
pub struct AuthorityOptions {
    /// Refuse changes with `EROFS`.
    pub read_only: bool,
    /// How long a replica may answer from its copy without hearing from here.
    pub lease: Duration,
    /// One replica only: end when it says goodbye or its session is dropped, or when nobody came
    /// within this time.
    pub once: Option<Duration>,
    /// How long handles and answers are kept for a replica whose connection is gone.
    pub linger: Duration,
}

impl Default for AuthorityOptions {
    fn default() -> Self {
        AuthorityOptions {
            read_only: false,
            lease: Duration::from_secs(10),
            once: None,
            linger: Duration::from_secs(600),
        }
    }
}

/// Serves `store` to those who come to `listener`, until it is closed, or (once) until the one replica is
/// gone.
pub async fn serve(_listener: Arc<Listener>, _store: Arc<dyn Store>, _options: AuthorityOptions) {
    unimplemented!()
}
