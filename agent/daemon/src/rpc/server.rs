//! The listener of 2377: our own TLS, so that certificates can be replaced, and bounds on what a
//! stranger can hold.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::server::{Connected, Server},
};

use super::gate::{Gate, Peer};
use crate::{identity::PeerIdentity, raft::Published};

/// Time for a handshake.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections of nodes that stand at the same time: one per node.
const MAX_CONNECTIONS: usize = 4096;
/// Handshakes at the same time; more wait in the kernel's queue. Strangers can hold no other place of a node.
const MAX_HANDSHAKES: usize = 256;
/// Connections without a certificate at the same time: machines that join.
const MAX_ANONYMOUS: usize = 256;
/// After this time a connection without a certificate is closed; a join is over long before.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);
/// Streams of one connection; a node needs three, and its calls.
const MAX_STREAMS: u32 = 128;
/// Pause after a failed accept, such as one without a free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `routes` behind the gate until `stop`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    routes: Routes,
    published: Arc<Published>,
    stop: CancellationToken,
) {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(accept(listener, tls, sender, stop.clone()));
    let served = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(64 * 1024)
        .http2_max_pending_accept_reset_streams(Some(32))
        .layer(Gate::new(published))
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(receiver), stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the cluster port stopped: {error}");
    }
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    ready: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let slots = Slots {
        nodes: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        anonymous: Arc::new(Semaphore::new(MAX_ANONYMOUS)),
    };
    loop {
        let next = async {
            let turn = Arc::clone(&handshakes).acquire_owned().await;
            (turn, listener.accept().await)
        };
        let (turn, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => return,
        };
        match (turn, accepted) {
            (Ok(turn), Ok((stream, addr))) => {
                let (acceptor, ready, slots) = (acceptor.clone(), ready.clone(), slots.clone());
                tokio::spawn(async move {
                    let made = handshake(acceptor, stream, addr, &slots).await;
                    drop(turn);
                    if let Some(connection) = made {
                        let _ = ready.send(Ok(connection)).await;
                    }
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection on the cluster port: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (Err(_), _) => return,
        }
    }
}

/// Places of connections that stand.
#[derive(Clone)]
struct Slots {
    nodes: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    addr: SocketAddr,
    slots: &Slots,
) -> Option<Connection> {
    let _ = stream.set_nodelay(true);
    // A stream of a node that lost its power would else stand for ever and hold the mesh back.
    let _ = skep_host::socket::notice_vanished_peer(&stream);
    let refused = |why: &dyn std::fmt::Display| {
        tracing::info!(peer.addr = %addr, why = %why, "refused a connection on the cluster port");
    };
    let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused(&error);
            return None;
        }
        Err(_) => {
            refused(&"the TLS handshake took too long");
            return None;
        }
    };
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let identity = match leaf.map(|leaf| PeerIdentity::of(leaf)).transpose() {
        Ok(identity) => identity,
        Err(error) => {
            refused(&error);
            return None;
        }
    };
    let (slots, life) = match &identity {
        Some(_) => (&slots.nodes, None),
        None => (&slots.anonymous, Some(ANONYMOUS_LIFE)),
    };
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
        refused(&"too many stand");
        return None;
    };
    Some(Connection {
        stream,
        end: life.map(|life| Box::pin(sleep(life))),
        peer: Peer { addr, identity },
        _slot: slot,
    })
}

/// A connection after its handshake.
struct Connection {
    stream: TlsStream<TcpStream>,
    /// When it is closed, whatever it is doing.
    end: Option<Pin<Box<Sleep>>>,
    peer: Peer,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// An error once the connection has stood for too long; wakes the task at that moment.
    fn check_age(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_age(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_age(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
