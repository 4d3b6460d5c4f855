//! rustls set up for raw public keys (RFC 7250).
//!
//! Both sides show an Ed25519 key and prove that they hold it: the signature over the handshake is
//! always checked here. Whether the key is trusted is asked after the handshake, in `endpoint`: that
//! may take a question to the user, and a refusal can then say why.
//!
//! There is no session resumption and no 0-RTT: every connection proves both keys anew.

use super::{Identity, PublicKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};
use std::sync::Arc;

/// What the two sides speak above QUIC.
const ALPN: &[u8] = b"memfs";

/// A client that shows this identity and takes any server that proves its key.
pub(super) fn client(identity: &Identity) -> Result<rustls::ClientConfig, Error> {
    let provider = Arc::new(provider());
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(own_key(identity)?);
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ProvesItsKey(provider)))
        .with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// A server that shows this identity and takes any client that proves its key.
pub(super) fn server(identity: &Identity) -> Result<rustls::ServerConfig, Error> {
    let provider = Arc::new(provider());
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(own_key(identity)?);
    let mut config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(ProvesItsKey(provider)))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The key the other side of a connection has proved to hold.
pub(super) fn peer_key(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection.peer_identity()?;
    match identity
        .downcast_ref::<Vec<CertificateDer<'static>>>()?
        .as_slice()
    {
        [only] => PublicKey::from_spki(only),
        _ => None,
    }
}

/// *ring*, named outright: with two providers in a program, rustls has no default. AES-128 comes first as
/// the fastest where processors have AES.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ],
        ..ring::default_provider()
    }
}

fn own_key(identity: &Identity) -> Result<Arc<rustls::sign::CertifiedKey>, Error> {
    let signer = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(identity.pkcs8()))?;
    let spki = CertificateDer::from(identity.public().to_spki().to_vec());
    Ok(Arc::new(rustls::sign::CertifiedKey::new(
        vec![spki],
        signer,
    )))
}

/// Takes whoever proves to hold the Ed25519 key it shows.
#[derive(Debug)]
struct ProvesItsKey(Arc<CryptoProvider>);

impl ProvesItsKey {
    fn check_form(shown: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        match PublicKey::from_spki(shown) {
            Some(_) if more.is_empty() => Ok(()),
            _ => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_form(shown, &[])?;
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(shown.as_ref()),
            signed,
            &self.0.signature_verification_algorithms,
        )
    }
}

/// TLS 1.2 is not offered; were it to come up all the same, this refuses it.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(
        PeerIncompatible::Tls13RequiredForQuic,
    ))
}

/// What a verifier is asked on either side, and answers alike.
macro_rules! alike_on_both_sides {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _shown: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            no_tls12()
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.check_signature(message, shown, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for ProvesItsKey {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check_form(shown, more)?;
        Ok(ServerCertVerified::assertion())
    }

    alike_on_both_sides!();
}

impl ClientCertVerifier for ProvesItsKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check_form(shown, more)?;
        Ok(ClientCertVerified::assertion())
    }

    alike_on_both_sides!();
}

#[cfg(test)]
mod tests {
    use super::super::{Authorized, ConnectError, Dialer, Listener, ServerTrust};
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn listener(identity: &Identity, client: PublicKey) -> (Listener, u16) {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = Listener::new(any, identity, Authorized::Keys(vec![client])).unwrap();
        let port = listener.address().unwrap().port();
        (listener, port)
    }

    fn dialer(port: u16, identity: Identity, server: PublicKey) -> Dialer {
        Dialer::new("127.0.0.1", port, identity, ServerTrust::Key(server)).unwrap()
    }

    #[tokio::test]
    async fn a_client_that_only_claims_a_key_is_not_let_in() {
        let (server, client) = (Identity::generate(), Identity::generate());
        let (listener, port) = listener(&server, client.public());
        let impostor = Identity::generate().claiming(client.public());
        match dialer(port, impostor, server.public())
            .connect(PATIENCE)
            .await
        {
            Ok(connection) => tokio::select! {
                closed = connection.closed() => {
                    let by_tls = matches!(closed, quinn::ConnectionError::ConnectionClosed(_));
                    assert!(by_tls, "{closed}");
                }
                _ = listener.accept() => panic!("an impostor was let in"),
            },
            Err(error) => assert!(matches!(error, ConnectError::Failed { .. }), "{error}"),
        }
        // Only the right one comes through.
        let right = dialer(port, client.clone(), server.public());
        let (near, far) = tokio::join!(right.connect(PATIENCE), listener.accept());
        near.unwrap();
        let (far, key, _) = far.unwrap();
        assert_eq!(key, client.public());
        assert!(far.close_reason().is_none());
    }

    #[tokio::test]
    async fn a_server_that_only_claims_a_key_is_not_believed() {
        let (server, client) = (Identity::generate(), Identity::generate());
        let impostor = Identity::generate().claiming(server.public());
        let (_listener, port) = listener(&impostor, client.public());
        let dialer = dialer(port, client, server.public());
        let error = dialer.connect(PATIENCE).await.unwrap_err();
        assert!(matches!(error, ConnectError::Failed { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_client_without_a_key_is_not_let_in() {
        let server = Identity::generate();
        let (_listener, port) = listener(&server, server.public());
        let provider = Arc::new(provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ProvesItsKey(provider)))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let mut endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let refused = match endpoint.connect(address, "memfs").unwrap().await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        assert!(
            matches!(refused, quinn::ConnectionError::ConnectionClosed(_)),
            "{refused}"
        );
    }
}
