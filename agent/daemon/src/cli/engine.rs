//! The Engine API as transport: HTTP/1.1 over mutual TLS, or over a Unix socket.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::Mutex,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::io::StreamReader;

use super::transport::{Call, Connection, Refused, Transport};

/// Where the Engine API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// `host:port` with mutual TLS.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// The port of the Engine API.
const PORT: u16 = 2376;
/// Time to connect, TLS included.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Time for an answer. Joining a swarm takes at most 20 s.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// Time for a debug container to begin: its image may have to come first.
const DEBUG_PATIENCE: Duration = Duration::from_secs(600);

impl Host {
    /// Parses `tcp://host[:port]`, `https://host[:port]`, `unix:///path` or `host[:port]`.
    ///
    /// # Errors
    /// For another scheme, or a port that is none.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Host::Unix(path.into()));
        }
        let rest = match text.split_once("://") {
            Some(("tcp" | "https", rest)) => rest,
            Some(_) => bail!("--host {text:?}: use tcp://ADDRESS:2376 or unix:///PATH"),
            None => text,
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
                let port = port
                    .parse()
                    .map_err(|_| anyhow!("--host {text:?}: {port:?} is not a port"))?;
                (host, port)
            }
            Some(_) | None => (rest, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            bail!("--host {text:?} names no host: use tcp://ADDRESS:2376");
        }
        Ok(Host::Tcp(host.to_owned(), port))
    }
}

/// A node reached by the Engine API. Keeps its connection between calls.
pub(super) struct Engine {
    host: Host,
    tls: Option<Arc<ClientConfig>>,
    idle: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Engine {
    /// A node at `host`; over TCP with the certificates of a folder.
    ///
    /// # Errors
    /// When a certificate is missing or unreadable.
    pub(super) fn new(host: Host, certs: Option<&Path>) -> Result<Self> {
        let tls = match (&host, certs) {
            (Host::Unix(_), _) => None,
            (Host::Tcp(..), Some(folder)) => Some(Arc::new(client_config(folder)?)),
            (Host::Tcp(..), None) => bail!(
                "a remote node needs certificates: give --certs DIR (or DOCKER_CERT_PATH) with ca.pem, cert.pem \
                 and key.pem"
            ),
        };
        Ok(Self {
            host,
            tls,
            idle: Mutex::new(None),
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let connecting = async {
            match (&self.host, &self.tls) {
                (Host::Tcp(host, port), Some(tls)) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    let name = ServerName::try_from(host.clone())?;
                    let connector = TlsConnector::from(Arc::clone(tls));
                    let stream = connector.connect(name, stream).await?;
                    serve(stream).await
                }
                (Host::Unix(path), _) => serve(UnixStream::connect(path).await?).await,
                (Host::Tcp(..), None) => bail!("no certificates"),
            }
        };
        let place = match &self.host {
            Host::Tcp(host, port) => format!("{host}:{port}"),
            Host::Unix(path) => path.display().to_string(),
        };
        timeout(CONNECT_PATIENCE, connecting)
            .await
            .map_err(|_| anyhow!("no answer in {} s", CONNECT_PATIENCE.as_secs()))
            .and_then(|result| result)
            .with_context(|| format!("cannot connect to {place}"))
    }

    /// Sends a request over the connection that is kept, if there is one. It is given back, for whoever is done with
    /// the answer.
    async fn send(
        &self,
        call: &Call,
        upgrade: bool,
    ) -> Result<(Response<Incoming>, SendRequest<Full<Bytes>>)> {
        let mut kept = self.idle.lock().await.take();
        let usable = match &mut kept {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        let mut sender = match kept.filter(|_| usable) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let patience = if upgrade {
            DEBUG_PATIENCE
        } else {
            ANSWER_PATIENCE
        };
        let response = timeout(patience, sender.send_request(request(call, upgrade)?))
            .await
            .map_err(|_| anyhow!("the node did not answer in {} s", patience.as_secs()))?
            .context("the connection to the node was lost")?;
        Ok((response, sender))
    }
}

/// Runs the connection in the background.
async fn serve(stream: impl Connection + 'static) -> Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // An error also ends the request in flight, which reports it.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

fn client_config(folder: &Path) -> Result<ClientConfig> {
    let file = |name: &str| folder.join(name);
    let unreadable = |name: &str| format!("cannot read {}", file(name).display());
    let mut roots = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(file("ca.pem")).with_context(|| unreadable("ca.pem"))?
    {
        roots.add(certificate.with_context(|| unreadable("ca.pem"))?)?;
    }
    let chain: Vec<_> = CertificateDer::pem_file_iter(file("cert.pem"))
        .and_then(Iterator::collect)
        .with_context(|| unreadable("cert.pem"))?;
    let key =
        PrivateKeyDer::from_pem_file(file("key.pem")).with_context(|| unreadable("key.pem"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn request(call: &Call, upgrade: bool) -> Result<Request<Full<Bytes>>> {
    let reference = call.reference.as_deref().map(escape).unwrap_or_default();
    let mut path = call.operation.path.replace("{}", &reference);
    let query: Vec<String> = call
        .params
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", escape(value)))
        .collect();
    if !query.is_empty() {
        path = format!("{path}?{}", query.join("&"));
    }
    let mut builder = Request::builder()
        .method(call.operation.method)
        .uri(path)
        .header(header::HOST, "skep");
    if upgrade {
        builder = builder
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp");
    }
    let body = match &call.body {
        Some(document) => {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
            Bytes::from(document.to_string())
        }
        None => Bytes::new(),
    };
    Ok(builder.body(Full::new(body))?)
}

/// Percent-encodes what is not a letter, a digit or one of `-_.~/:`.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/:".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

async fn document(response: Response<Incoming>) -> Result<Value> {
    let status = response.status();
    let bytes = response
        .into_body()
        .collect()
        .await
        .context("the connection to the node was lost")?
        .to_bytes();
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    let message = match value["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the node answered {status}"),
    };
    Err(Refused {
        message,
        not_found: status == StatusCode::NOT_FOUND,
    }
    .into())
}

#[async_trait]
impl Transport for Engine {
    async fn call(&self, call: Call) -> Result<Value> {
        let (response, sender) = self.send(&call, false).await?;
        let answer = document(response).await;
        *self.idle.lock().await = Some(sender);
        answer
    }

    async fn open(&self, call: Call) -> Result<Box<dyn Connection>> {
        let upgrade = call.operation == super::transport::DEBUG;
        // The stream has the connection for itself: other calls go on beside it.
        let (response, _) = self.send(&call, upgrade).await?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let upgraded = hyper::upgrade::on(response).await?;
                Ok(Box::new(TokioIo::new(upgraded)))
            }
            StatusCode::OK => {
                let pieces = BodyStream::new(response.into_body())
                    .try_filter_map(|frame| std::future::ready(Ok(frame.into_data().ok())))
                    .map_err(std::io::Error::other);
                let reader = StreamReader::new(Box::pin(pieces));
                Ok(Box::new(tokio::io::join(reader, tokio::io::sink())))
            }
            _ => Err(document(response)
                .await
                .err()
                .unwrap_or_else(|| anyhow!("the node did not begin the stream"))),
        }
    }

    async fn to_node(&self, address: &str) -> Result<Box<dyn Transport>> {
        let engine = Self {
            host: Host::Tcp(address.to_owned(), PORT),
            tls: self.tls.clone(),
            idle: Mutex::new(None),
        };
        if engine.tls.is_none() {
            bail!(
                "another node is reached by TLS only: use --host tcp://{address}:{PORT} and --certs"
            );
        }
        std::future::ready(Ok(Box::new(engine) as Box<dyn Transport>)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_dockers_client_reads_them() {
        let tcp = |host: &str, port| Host::Tcp(host.to_owned(), port);
        let cases = [
            ("tcp://192.168.77.11:2376", tcp("192.168.77.11", 2376)),
            ("tcp://127.0.0.1:40001/", tcp("127.0.0.1", 40001)),
            ("https://node", tcp("node", 2376)),
            ("node:1234", tcp("node", 1234)),
            ("tcp://[fd00::1]:2376", tcp("fd00::1", 2376)),
            ("tcp://[fd00::1]", tcp("fd00::1", 2376)),
            ("unix:///run/x.sock", Host::Unix("/run/x.sock".into())),
        ];
        for (text, host) in cases {
            assert_eq!(Host::parse(text).unwrap(), host, "{text}");
        }
        for wrong in ["ssh://node", "tcp://node:port", "tcp://", ""] {
            assert!(Host::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escape(r#"{"a b":1}"#), "%7B%22a%20b%22:1%7D");
        assert_eq!(escape("10.0.2.2:15000/whoami"), "10.0.2.2:15000/whoami");
    }
}
