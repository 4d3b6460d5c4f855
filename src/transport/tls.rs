//! rustls set up for raw public keys (RFC 7250).
