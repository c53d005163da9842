//! Connections to managers.

use std::{io, net::IpAddr, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use skep_host::machine;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// The name under which nodes know managers.
pub const MANAGER: &str = "swarm-manager";
/// The name under which a node without a certificate knows managers.
pub const AUTHORITY: &str = "swarm-ca";

/// Time for TCP and TLS together.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the machine's own address is waited for.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(30);

/// How to reach managers: TLS settings and the address to come from.
#[derive(Clone)]
pub struct Dialer {
    tls: Arc<ClientConfig>,
    name: &'static str,
    from: Option<IpAddr>,
}

impl Dialer {
    /// A dialer that expects the peer to be `name`. `from` is this node's advertised address: managers
    /// take the address that they see for the node's own.
    #[must_use]
    pub fn new(tls: Arc<ClientConfig>, name: &'static str, from: Option<IpAddr>) -> Self {
        Self { tls, name, from }
    }

    /// A channel that connects when it is used, and again after a failure.
    #[must_use]
    pub fn lazy(&self, addr: &str) -> Channel {
        let (dialer, addr) = (self.clone(), addr.to_owned());
        endpoint().connect_with_connector_lazy(service_fn(move |_: Uri| {
            let (dialer, addr) = (dialer.clone(), addr.clone());
            async move { dialer.connect(&addr).await.map(TokioIo::new) }
        }))
    }

    /// A channel whose first connection stands.
    ///
    /// # Errors
    /// In one line: what could not be reached and why.
    pub async fn dial(&self, addr: &str) -> Result<Channel, DialError> {
        // Connected here first: tonic would hide the cause in layers of its own errors.
        let first = self.connect(addr).await.map_err(|source| DialError {
            addr: addr.to_owned(),
            source,
        })?;
        let mut first = Some(TokioIo::new(first));
        let connector = service_fn(move |_: Uri| {
            let stream = first
                .take()
                .ok_or_else(|| io::Error::other("connection lost"));
            std::future::ready(stream)
        });
        endpoint()
            .connect_with_connector(connector)
            .await
            .map_err(|error| DialError {
                addr: addr.to_owned(),
                source: io::Error::other(error),
            })
    }

    async fn connect(&self, addr: &str) -> io::Result<TlsStream<TcpStream>> {
        let work = async {
            let mut last = io::Error::other("the name has no address");
            for target in lookup_host(addr).await? {
                match self.connect_tcp(target).await {
                    Ok(stream) => return self.handshake(stream).await,
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        tokio::time::timeout(PATIENCE, work)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect_tcp(&self, target: SocketAddr) -> io::Result<TcpStream> {
        let socket = match target {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_nodelay(true)?;
        if let Some(from) = self.from.filter(|from| from.is_ipv4() == target.is_ipv4()) {
            // An advertised address that is not on this machine is one behind NAT.
            let _ = socket.bind(SocketAddr::new(from, 0));
        }
        let stream = socket.connect(target).await?;
        let _ = skep_host::socket::notice_vanished_peer(&stream);
        Ok(stream)
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.name).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
    }
}

/// Waits, but not for ever, until this machine has the address that it advertises: at boot the network is
/// set up by others at the same time.
pub async fn own_address(advertise: IpAddr) {
    let there = || advertise.is_loopback() || machine::addresses().contains(&advertise);
    let wait = async {
        while !there() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if !there() {
        tracing::info!(address = %advertise, "waiting for the address that this node advertises");
        if tokio::time::timeout(ADDRESS_PATIENCE, wait).await.is_err() {
            tracing::warn!(address = %advertise, "this machine does not have the address that it advertises: going on as behind NAT");
        }
    }
}

/// A manager that could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the manager at {addr}: {source}")]
pub struct DialError {
    addr: String,
    source: io::Error,
}

impl DialError {
    /// Whether TLS refused the peer: it is there, and trying again will not help.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        let inner = self.source.get_ref();
        inner.is_some_and(|inner| inner.is::<rustls::Error>())
    }
}

/// No keepalive pings: grpc-go answers them with GOAWAY (`too_many_pings`).
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://swarm-manager")
}
