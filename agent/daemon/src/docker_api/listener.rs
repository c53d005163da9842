//! Connections to the Engine API: accepting them, TLS, and limits on each.

use std::{io, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Peer, answer};

/// Connections served at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Handshakes at the same time, so that strangers hold no place of an operator.
const MAX_HANDSHAKES: usize = 64;
/// Time for a TLS handshake, and for the header of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a request's header.
const MAX_HEADER: usize = 64 * 1024;
/// Pause after a failed accept, such as one without a free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The TLS settings of 2376: this node's API certificate, and clients that the operator CA has signed.
/// Node certificates are from another CA and are refused.
///
/// # Errors
/// When a certificate cannot be used, or there is no operator CA.
pub fn tls_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    operator_cas: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<ServerConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in operator_cas {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves the Engine API over mutual TLS, for ever. Each connection takes the settings that are current
/// when it comes, so a renewed certificate needs no restart; while there are none it is closed.
pub async fn serve_tls(
    listener: TcpListener,
    settings: watch::Receiver<Option<Arc<ServerConfig>>>,
    router: Router,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the Engine API: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let current = settings.borrow().clone();
        if let Some(config) = current {
            let (router, slots) = (router.clone(), Arc::clone(&slots));
            tokio::spawn(serve_one_tls(stream, config, router, turn, slots));
        }
    }
}

async fn serve_one_tls(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    router: Router,
    turn: OwnedSemaphorePermit,
    slots: Arc<Semaphore>,
) {
    // Small answers shall not wait for more.
    let _ = stream.set_nodelay(true);
    match timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => {
            let operator = operator_name(stream.get_ref().1.peer_certificates());
            // It keeps its turn while it waits, so that no more than those wait.
            let Ok(Ok(_slot)) = timeout(PATIENCE, slots.acquire()).await else {
                tracing::warn!(
                    operator,
                    "too many connections to the Engine API stand: refused one"
                );
                return;
            };
            drop(turn);
            serve_connection(stream, router, Peer(operator)).await;
        }
        Ok(Err(error)) => tracing::info!(%error, "refused a client of the Engine API"),
        Err(_) => tracing::info!("a client of the Engine API did not finish its TLS handshake"),
    }
}

/// The subject of the client's certificate.
fn operator_name(chain: Option<&[CertificateDer<'_>]>) -> String {
    chain
        .and_then(<[CertificateDer<'_>]>::first)
        .and_then(|leaf| X509Certificate::from_der(leaf).ok())
        .map_or_else(
            || "operator without a readable certificate".to_owned(),
            |(_, certificate)| certificate.subject().to_string(),
        )
}

/// Serves the Engine API on a Unix socket, for ever. Whoever may connect is an operator.
pub async fn serve_unix(listener: UnixListener, router: Router) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let uid = stream.peer_cred().map(|cred| cred.uid());
        let peer = uid.map_or_else(|_| "unknown".to_owned(), |uid| format!("uid {uid}"));
        tokio::spawn(serve_connection(stream, router.clone(), Peer(peer)));
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    peer: Peer,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(router, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEADER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the Engine API ended badly");
    }
}
