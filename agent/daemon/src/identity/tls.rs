//! TLS of both ports, with certificates that can be replaced while connections stand.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use super::{IdentityError, PeerIdentity, certificate};
use skep_core::api::Role;

/// A certificate and its key, replaceable: handshakes that begin after [`CertificateCell::set`] use the new one.
#[derive(Debug, Default)]
pub struct CertificateCell(RwLock<Option<Arc<CertifiedKey>>>);

impl CertificateCell {
    /// Puts a certificate chain and its key in place, both PEM.
    ///
    /// # Errors
    /// When they are damaged or do not belong together.
    pub fn set(&self, chain: &str, key: &str) -> Result<(), IdentityError> {
        let chain = certificate::chain(chain.as_bytes(), "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| IdentityError::malformed("private key", format!("{error:?}")))?;
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }

    fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ResolvesServerCert for CertificateCell {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}

impl ResolvesClientCert for CertificateCell {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.get()
    }

    fn has_certs(&self) -> bool {
        self.get().is_some()
    }
}

/// The server side of 2377: a client certificate, if one is shown, is of the cluster's authority; which
/// calls need which role is decided per method.
///
/// # Errors
/// When the root is damaged.
pub fn cluster_server(
    root: &str,
    cell: Arc<CertificateCell>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(root)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| IdentityError::malformed("root certificate", error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(cell);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Who the client is must be looked at in each handshake: a node may have been removed since.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The server side of 2376: operators only.
///
/// # Errors
/// When the operators' root is damaged.
pub fn api_server(
    operator_root: &str,
    cell: Arc<CertificateCell>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(operator_root)?, provider())
        .build()
        .map_err(|error| IdentityError::malformed("operators' root certificate", error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(cell);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The client side of 2377. Without a cell no certificate is shown (a node that joins).
///
/// # Errors
/// When the root is damaged.
pub fn cluster_client(
    root: &str,
    cell: Option<Arc<CertificateCell>>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots(root)?, provider())
        .build()
        .map_err(|error| IdentityError::malformed("root certificate", error))?;
    Ok(client(Arc::new(ManagerVerifier { inner }), cell)?)
}

/// The client that fetches the root certificate: it takes any certificate, because the join token pins
/// the answer.
///
/// # Errors
/// When TLS cannot be set up.
pub fn bootstrap_client() -> Result<Arc<ClientConfig>, IdentityError> {
    Ok(client(Arc::new(AnyCertificate(provider())), None)?)
}

fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    cell: Option<Arc<CertificateCell>>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match cell {
        Some(cell) => builder.with_client_cert_resolver(cell),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would go on with a certificate that was replaced.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::ring::default_provider())
}

fn roots(bundle: &str) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut store = RootCertStore::empty();
    for root in certificate::chain(bundle.as_bytes(), "root certificate")? {
        store.add(root)?;
    }
    Ok(Arc::new(store))
}

/// The usual verification, and then: the peer is a manager. The authority also signs the certificates
/// of management endpoints, whose names nodes choose.
#[derive(Debug)]
struct ManagerVerifier {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        match PeerIdentity::of(end_entity) {
            Ok(peer) if peer.role == Role::Manager => Ok(verified),
            Ok(_) | Err(_) => Err(rustls::Error::General("the peer is no manager".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.inner.root_hint_subjects()
    }
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
