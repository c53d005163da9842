//! The management API of a node (Docker's Engine API over mutual TLS), as far as the lab asks it itself.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;

use crate::http::Client;

/// Longest wait for one answer: an emulated node under load takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of the API at this port of the host's loopback, with the operator's certificates in `certs`.
///
/// # Errors
/// When the certificates cannot be read.
pub fn client(port: u16, certs: &Path) -> Result<Client> {
    let name = ServerName::try_from("127.0.0.1")?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    Ok(Client::tls(address, tls(certs)?, name, PATIENCE))
}

fn tls(certs: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(certs.join("ca.pem"))? {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_file_iter(certs.join("cert.pem"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(certs.join("key.pem"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .with_context(|| format!("the certificates in {} are no good", certs.display()))?;
    Ok(Arc::new(config))
}

/// The certificate that the API at this port presents, taken without any check: for a node that nobody vouches for yet.
///
/// # Errors
/// When nobody answers there with TLS.
pub fn presented_certificate(port: u16) -> Result<CertificateDer<'static>> {
    let (stranger, seen) = stranger(port, &[])?;
    // The request itself fails for want of a client certificate; by then the server has shown its own.
    let asked = stranger.get("/_ping");
    let certificate = seen
        .certificate
        .lock()
        .ok()
        .and_then(|mut seen| seen.take());
    match certificate {
        Some(certificate) => Ok(certificate),
        None => bail!("no certificate at port {port}: {:?}", asked.err()),
    }
}

/// A client without a certificate that takes whatever the other side presents, and what it saw of it.
///
/// # Errors
/// When TLS cannot be set up.
pub fn stranger(port: u16, protocols: &[&str]) -> Result<(Client, Arc<Witness>)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let seen = Arc::new(Witness {
        provider: Arc::clone(&provider),
        certificate: Mutex::new(None),
    });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let name = ServerName::try_from("127.0.0.1")?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let client = Client::tls(address, Arc::new(config), name, PATIENCE);
    Ok((client, seen))
}

/// Takes every certificate and remembers it.
#[derive(Debug)]
pub struct Witness {
    provider: Arc<CryptoProvider>,
    certificate: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Ok(mut seen) = self.certificate.lock() {
            *seen = Some(certificate.clone().into_owned());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A node as a manager lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its host name.
    pub name: String,
    /// Docker's word for its state: `ready`, `down`, `unknown`, `disconnected`.
    pub state: String,
}

/// The nodes that a manager knows.
pub fn nodes(client: &Client) -> Result<Vec<Listed>> {
    let list = json(client, "/nodes")?;
    let text = |node: &Value, pointer: &str| {
        node.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let list = list.as_array().context("/nodes answers no list")?;
    Ok(list
        .iter()
        .map(|node| Listed {
            name: text(node, "/Description/Hostname"),
            state: text(node, "/Status/State"),
        })
        .collect())
}

/// What the API answers to a GET.
pub fn json(client: &Client, path: &str) -> Result<Value> {
    let answer = client.get(path)?.good()?;
    serde_json::from_slice(&answer.body).with_context(|| format!("{path} answers no JSON"))
}
