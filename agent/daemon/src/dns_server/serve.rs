//! One server per sandbox: its two sockets, each with bounds.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::op::ResponseCode;
use skep_core::{node::Names, rng::Rng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    forward::forward,
    reply::{Reply, Transport, failure, reply},
};

/// The longest question: more than any resolver sends.
const MAX_QUESTION: usize = 4096;
/// Questions of one sandbox that are being forwarded at a time; more are refused.
const MAX_FORWARDS: usize = 64;
/// TCP connections of one sandbox at a time; more are closed.
const MAX_CONNECTIONS: usize = 32;
/// How long a TCP connection may be silent, or take to accept an answer.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after an error of a socket that comes back at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What every server of the node shares.
pub(super) struct Shared {
    pub(super) names: watch::Receiver<Option<Arc<Names>>>,
    /// Questions of all sandboxes that may be forwarded at a time.
    pub(super) forwards: Arc<Semaphore>,
    pub(super) rng: Mutex<Rng>,
}

/// One sandbox's server. Dropped, it is silent at once.
pub(super) struct Server {
    _tasks: JoinSet<()>,
}

struct Asker {
    shared: Arc<Shared>,
    sandbox: String,
    forwards: Semaphore,
}

impl Server {
    /// Serves the sandbox whose namespace has that name on its sockets, which are non-blocking.
    pub(super) fn start(
        shared: Arc<Shared>,
        sandbox: &str,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
    ) -> io::Result<Self> {
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let asker = Arc::new(Asker {
            shared,
            sandbox: sandbox.to_owned(),
            forwards: Semaphore::new(MAX_FORWARDS),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::clone(&asker), Arc::new(udp)));
        tasks.spawn(serve_tcp(asker, tcp));
        Ok(Self { _tasks: tasks })
    }
}

async fn serve_udp(asker: Arc<Asker>, socket: Arc<UdpSocket>) {
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        while forwards.try_join_next().is_some() {}
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An ICMP message about an earlier answer, most likely.
                tracing::debug!(sandbox = asker.sandbox, %error, "DNS: cannot receive");
                sleep(PAUSE).await;
                continue;
            }
        };
        let packet = &buffer[..length];
        match asker.decide(packet, Transport::Udp) {
            Reply::Silence => {}
            Reply::Bytes(bytes) => answer_udp(&socket, &bytes, client).await,
            Reply::Forward if forwards.len() >= MAX_FORWARDS => {
                answer_udp(&socket, &failure(packet, ResponseCode::Refused), client).await;
            }
            Reply::Forward => {
                let (asker, socket, packet) =
                    (Arc::clone(&asker), Arc::clone(&socket), packet.to_vec());
                forwards.spawn(async move {
                    let answer = asker.forward(&packet, Transport::Udp).await;
                    answer_udp(&socket, &answer, client).await;
                });
            }
        }
    }
}

async fn answer_udp(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, client).await {
        tracing::debug!(%client, %error, "DNS: cannot answer");
    }
}

async fn serve_tcp(asker: Arc<Asker>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                let asker = Arc::clone(&asker);
                connections.spawn(async move {
                    if let Err(error) = serve_connection(&asker, stream).await {
                        tracing::debug!(sandbox = asker.sandbox, %error, "DNS: a connection ends");
                    }
                });
            }
            Ok(_) => tracing::debug!(sandbox = asker.sandbox, "DNS: too many connections"),
            Err(error) => {
                tracing::debug!(sandbox = asker.sandbox, %error, "DNS: cannot accept");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Answers the questions of one connection, one after the other.
async fn serve_connection(asker: &Asker, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = match timeout(IDLE, stream.read_u16()).await? {
            Ok(length) => usize::from(length),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        if length > MAX_QUESTION {
            return Err(io::Error::other("a question of more than 4096 bytes"));
        }
        let mut packet = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut packet)).await??;
        let answer = match asker.decide(&packet, Transport::Tcp) {
            Reply::Silence => return Ok(()),
            Reply::Bytes(bytes) => bytes,
            Reply::Forward => asker.forward(&packet, Transport::Tcp).await,
        };
        let mut message = u16::try_from(answer.len())
            .map_err(io::Error::other)?
            .to_be_bytes()
            .to_vec();
        message.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&message)).await??;
    }
}

impl Asker {
    fn names(&self) -> Option<Arc<Names>> {
        self.shared.names.borrow().clone()
    }

    fn decide(&self, packet: &[u8], transport: Transport) -> Reply {
        let Some(names) = self.names() else {
            return Reply::Bytes(failure(packet, ResponseCode::ServFail));
        };
        let mut rng = self
            .shared
            .rng
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        reply(&names, &self.sandbox, packet, transport, &mut rng)
    }

    async fn forward(&self, packet: &[u8], transport: Transport) -> Vec<u8> {
        let (Ok(_mine), Ok(_ours)) = (
            self.forwards.try_acquire(),
            self.shared.forwards.try_acquire(),
        ) else {
            return failure(packet, ResponseCode::Refused);
        };
        let servers = self
            .names()
            .map(|names| servers_of(&names, &self.sandbox))
            .unwrap_or_default();
        let id = {
            let mut rng = self
                .shared
                .rng
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            u16::try_from(rng.below(1 << 16)).unwrap_or_default()
        };
        let answer = forward(&servers, packet, transport, id).await;
        answer.unwrap_or_else(|| failure(packet, ResponseCode::ServFail))
    }
}

/// The name servers of a sandbox: its own, or the node's.
fn servers_of(names: &Names, sandbox: &str) -> Vec<IpAddr> {
    let mut sandboxes = names.sandboxes.values();
    let own = sandboxes
        .find(|known| known.short_id() == sandbox)
        .map(|known| &known.name_servers)
        .filter(|servers| !servers.is_empty());
    own.unwrap_or(&names.node.name_servers).clone()
}
