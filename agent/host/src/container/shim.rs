//! skepd's side of the conversation with a shim.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::bundle::Mounted;
use super::protocol::{MAX_PACKET, Ready, Reply, Request, SOCKET};

/// How long the creation of a container may take: minutes only on a machine that is emulated and overloaded.
const CREATE: Duration = Duration::from_secs(180);
/// How long a shim may take to answer. It does nothing slow.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    fd: AsyncFd<OwnedFd>,
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// A reply.
    Reply(Reply),
    /// A frame of output: which, and the data.
    Frame(u8, Vec<u8>),
    /// The shim has closed the connection.
    End,
}

/// Starts a shim in `dir` and waits until its container is created; the main process's number.
pub(super) async fn spawn(program: &Path, dir: &Path, mounted: Mounted) -> io::Result<i32> {
    let mut command = Command::new(program);
    command.arg(dir);
    if let Some(provided) = mounted.provided {
        pass_on(&mut command, provided);
    }
    let mut child = command
        .env_clear()
        // A process group of its own: a signal to skepd's group is not for it.
        .process_group(0)
        .stdin(Stdio::from(mounted.root))
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    // With it goes what was passed on.
    drop(command);
    let stdout = child.stdout.take();
    // It lives longer than this call; while skepd lives, skepd is its parent and has to reap it.
    tokio::spawn(async move { child.wait().await });
    let stdout = stdout.ok_or_else(|| io::Error::other("no pipe to the shim"))?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(tokio::io::AsyncReadExt::take(stdout, 64 * 1024));
    timeout(CREATE, reader.read_until(b'\n', &mut line)).await??;
    match serde_json::from_slice(&line) {
        Ok(Ready::Created { pid }) => Ok(pid),
        Ok(Ready::Failed { why }) => Err(io::Error::other(why)),
        Err(_) => Err(io::Error::other("the shim died; the journal may say why")),
    }
}

/// Gives the program a descriptor under the number that it has here, which it is told as an argument.
fn pass_on(command: &mut Command, descriptor: OwnedFd) {
    command.arg(descriptor.as_raw_fd().to_string());
    let keep = move || Ok(rustix::io::fcntl_setfd(&descriptor, FdFlags::empty())?);
    // SAFETY: between fork and exec the closure makes one system call and touches no memory.
    unsafe { command.pre_exec(keep) };
}

/// Lets tokio tell when a descriptor that does not block is ready.
pub(super) fn registered(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is returned, so it stays open for as long as it is registered.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Whether an error of [`Connection::open`] says that there is no shim, now or ever again.
pub(super) fn says_dead(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

impl Connection {
    /// Connects to the shim of the container in `dir`.
    pub(super) async fn open(dir: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(dir.join(SOCKET))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            || rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        for attempt in 1..=20_u64 {
            let fd = socket()?;
            match rustix::net::connect(&fd, &address) {
                Ok(()) => {
                    return Ok(Self {
                        fd: registered(fd)?,
                    });
                }
                // Its queue of connections is full.
                Err(rustix::io::Errno::AGAIN) => {
                    tokio::time::sleep(Duration::from_millis(5 * attempt)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Connects, asks and takes the one answer.
    pub(super) async fn ask(dir: &Path, request: &Request) -> io::Result<Reply> {
        let connection = Self::open(dir).await?;
        connection.request(request, &[]).await?;
        connection.answer().await
    }

    /// Sends a request.
    pub(super) async fn request(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let packet = serde_json::to_vec(request)?;
        if packet.len() > MAX_PACKET {
            return Err(io::Error::other(format!(
                "the request has {} bytes, more than {MAX_PACKET}: shorten arguments or environment",
                packet.len()
            )));
        }
        self.send(&packet, fds).await
    }

    /// Sends a frame of input.
    pub(super) async fn frame(&self, stream: u8, data: &[u8]) -> io::Result<()> {
        let mut packet = Vec::with_capacity(data.len() + 1);
        packet.push(stream);
        packet.extend_from_slice(data);
        self.send(&packet, &[]).await
    }

    async fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.fd.writable().await?;
            let result = ready.try_io(|fd| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let buffers = [IoSlice::new(packet)];
                rustix::net::sendmsg(fd, &buffers, &mut control, SendFlags::NOSIGNAL)?;
                Ok(())
            });
            match result {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// The next packet, however long it takes.
    pub(super) async fn receive(&self) -> io::Result<Packet> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| receive_now(fd.as_fd())) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// The next packet, which has to be a reply and soon.
    pub(super) async fn answer(&self) -> io::Result<Reply> {
        match timeout(ANSWER, self.receive()).await?? {
            Packet::Reply(Reply::Error { why }) => Err(io::Error::other(why)),
            Packet::Reply(reply) => Ok(reply),
            Packet::Frame(..) => Err(io::Error::other("the shim sent output, not an answer")),
            Packet::End => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn receive_now(fd: BorrowedFd<'_>) -> io::Result<Packet> {
    let mut data = vec![0; MAX_PACKET];
    let mut control = RecvAncillaryBuffer::default();
    let mut buffers = [IoSliceMut::new(&mut data)];
    let message =
        match rustix::net::recvmsg(fd, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message,
            Err(rustix::io::Errno::CONNRESET) => return Ok(Packet::End),
            Err(error) => return Err(error.into()),
        };
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::other("a packet from the shim was too long"));
    }
    data.truncate(message.bytes);
    parse(&data)
}

/// Reads a packet. The shim is ours, but shares a fate with programs that are not.
fn parse(data: &[u8]) -> io::Result<Packet> {
    match data.split_first() {
        None => Ok(Packet::End),
        Some((b'{' | b'"', _)) => Ok(Packet::Reply(serde_json::from_slice(data)?)),
        Some((stream, rest)) => Ok(Packet::Frame(*stream, rest.to_vec())),
    }
}

/// Takes the one descriptor that comes with a message, such as a terminal.
pub(super) fn receive_descriptor(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut name = [0; 256];
    let mut buffers = [IoSliceMut::new(&mut name)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::other("no descriptor came with the message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn replies_and_frames_are_told_apart() {
        let done = serde_json::to_vec(&Reply::Done).unwrap();
        assert_eq!(parse(&done).unwrap(), Packet::Reply(Reply::Done));
        let exec = serde_json::to_vec(&Reply::Exec { pid: 7 }).unwrap();
        assert_eq!(parse(&exec).unwrap(), Packet::Reply(Reply::Exec { pid: 7 }));
        assert_eq!(parse(b"\x01{").unwrap(), Packet::Frame(1, b"{".to_vec()));
        assert_eq!(parse(b"").unwrap(), Packet::End);
        assert!(parse(b"{nonsense").is_err());
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_parser_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&data);
        }
    }
}
