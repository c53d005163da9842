//! Connections to the shim: packets in, packets out, descriptors on the side.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4,
    bind, listen, recvmsg, send, socket,
};

use crate::protocol::{MAX_PACKET, Reply};
use crate::{Result, Trying};

/// Connections at a time; more are closed at once.
pub(crate) const MAX_CLIENTS: usize = 64;
/// Bytes on the way to a client after which a lossless one holds up the container.
pub(crate) const FULL: usize = 64 * 1024;
/// Bytes on the way to a client after which it is cut off.
const OVERFLOW: usize = 256 * 1024;

/// The listening socket.
pub(crate) struct Listener {
    fd: OwnedFd,
}

impl Listener {
    /// Listens at a name in the current directory, so that the length of the path does not matter.
    pub(crate) fn bind(name: &str) -> Result<Self> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .trying("make the socket")?;
        let address = UnixAddr::new(name).trying("name the socket")?;
        bind(fd.as_raw_fd(), &address).trying("bind the socket")?;
        let backlog = Backlog::new(16).trying("listen on the socket")?;
        listen(&fd, backlog).trying("listen on the socket")?;
        Ok(Self { fd })
    }

    /// To poll for reading.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The next connection, if one waits.
    pub(crate) fn accept(&self) -> Option<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.fd.as_raw_fd(), flags).ok()?;
        // SAFETY: the kernel has just made this descriptor for us.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It has not said yet.
    Fresh,
    /// It wants to know of the end.
    Waiter,
    /// It has an `exec`.
    Exec,
    /// It streams.
    Attached {
        /// Its frames are input.
        stdin: bool,
        /// The container waits for it.
        lossless: bool,
    },
    /// It goes once it has been told all.
    Leaving,
}

/// One connection.
pub(crate) struct Client {
    /// Its number, never used again.
    pub(crate) id: u64,
    /// What it is for.
    pub(crate) role: Role,
    fd: OwnedFd,
    outbox: VecDeque<Vec<u8>>,
    queued: usize,
    gone: bool,
}

/// What came in.
pub(crate) enum Packet {
    /// A packet and its descriptors.
    Data(Vec<u8>, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The client has gone or does not keep to the protocol.
    Gone,
}

impl Client {
    /// A connection that was accepted.
    pub(crate) fn new(id: u64, fd: OwnedFd) -> Self {
        Self {
            id,
            role: Role::Fresh,
            fd,
            outbox: VecDeque::new(),
            queued: 0,
            gone: false,
        }
    }

    /// To poll.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether something is on its way.
    pub(crate) fn wants_to_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether a lossless client is so far behind that the container must wait.
    pub(crate) fn is_full(&self) -> bool {
        self.queued >= FULL
    }

    /// Whether the connection is to be closed.
    pub(crate) fn is_over(&self) -> bool {
        self.gone || (self.role == Role::Leaving && self.outbox.is_empty())
    }

    /// Closes it without another word.
    pub(crate) fn drop_it(&mut self) {
        self.gone = true;
    }

    /// Reads a packet.
    pub(crate) fn receive(&mut self) -> Packet {
        let mut data = vec![0; MAX_PACKET];
        let mut buffers = [IoSliceMut::new(&mut data)];
        let mut space = nix::cmsg_space!([RawFd; 3]);
        let received = recvmsg::<()>(
            self.fd.as_raw_fd(),
            &mut buffers,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        let message = match received {
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return Packet::Nothing,
            Err(_) => return Packet::Gone,
        };
        let mut fds = Vec::new();
        let truncated = message
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                // SAFETY: the kernel has just made these descriptors for us.
                fds.extend(
                    numbers
                        .iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }),
                );
            }
        }
        let length = message.bytes;
        if truncated || length == 0 {
            return Packet::Gone;
        }
        data.truncate(length);
        Packet::Data(data, fds)
    }

    /// Sends a reply.
    pub(crate) fn reply(&mut self, reply: &Reply) {
        // Writing these types into a vector cannot fail.
        let packet = serde_json::to_vec(reply).unwrap_or_default();
        self.send(packet);
    }

    /// Sends a last reply and closes.
    pub(crate) fn finish(&mut self, reply: &Reply) {
        self.reply(reply);
        self.role = Role::Leaving;
    }

    /// Sends a frame of output.
    pub(crate) fn frame(&mut self, stream: u8, data: &[u8]) {
        let mut packet = Vec::with_capacity(data.len() + 1);
        packet.push(stream);
        packet.extend_from_slice(data);
        self.send(packet);
    }

    fn send(&mut self, packet: Vec<u8>) {
        self.queued += packet.len();
        self.outbox.push_back(packet);
        self.flush();
        if self.queued > OVERFLOW {
            self.gone = true;
        }
    }

    /// Writes what the client takes. True if it took anything.
    pub(crate) fn flush(&mut self) -> bool {
        let mut progress = false;
        while let Some(packet) = self.outbox.front() {
            match send(self.fd.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => {
                    self.queued -= packet.len();
                    self.outbox.pop_front();
                    progress = true;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
        }
        progress
    }
}
