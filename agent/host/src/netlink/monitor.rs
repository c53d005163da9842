//! Word that something has changed in a namespace. What it was is not told: look again.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use skep_core::network::Ns;
use tokio::{io::unix::AsyncFd, sync::Notify, task::JoinHandle};

use crate::{error::Result, netlink::failed, netns};

/// Multicast groups as bits: links, neighbours and bridge entries, IPv4 addresses, IPv4 routes.
const LINK: u32 = 1;
const NEIGHBOUR: u32 = 1 << 2;
const ADDRESS: u32 = 1 << 4;
const ROUTE: u32 = 1 << 6;
/// `NFNLGRP_NFTABLES`.
const NFTABLES: u32 = 1 << 6;

/// The namespaces in which something has changed since somebody asked last.
#[derive(Debug, Default)]
pub struct Changes {
    namespaces: Mutex<BTreeSet<Ns>>,
    any: Notify,
}

impl Changes {
    /// Waits until something has changed, and forgets it.
    pub async fn next(&self) -> BTreeSet<Ns> {
        loop {
            let changed = std::mem::take(
                &mut *self
                    .namespaces
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            );
            if !changed.is_empty() {
                return changed;
            }
            self.any.notified().await;
        }
    }

    fn note(&self, ns: &Ns) {
        let mut namespaces = self
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        namespaces.insert(ns.clone());
        drop(namespaces);
        self.any.notify_one();
    }
}

/// Listens in one namespace for as long as it lives.
#[derive(Debug)]
pub struct Monitor(Vec<JoinHandle<()>>);

impl Drop for Monitor {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl Monitor {
    /// Starts listening.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the sockets not made.
    pub async fn start(fd: BorrowedFd<'_>, ns: &Ns, changes: &Arc<Changes>) -> Result<Self> {
        // ARP learns all the time where containers and the host itself talk; there nobody but a
        // human makes static entries, which the slow timer finds.
        let overlay = matches!(ns, Ns::Named(name) if name.starts_with("1-"));
        let neighbours = if overlay { NEIGHBOUR } else { 0 };
        let sockets = netns::enter_async(fd, move || {
            let groups = LINK | ADDRESS | ROUTE | neighbours;
            Ok([
                listen(SockProtocol::NetlinkRoute, groups)?,
                listen(SockProtocol::NetlinkNetFilter, NFTABLES)?,
            ])
        });
        let failed = |error: io::Error| failed("listen for changes in", ns, error);
        let mut tasks = Vec::new();
        for socket in sockets.await?.map_err(failed)? {
            // SAFETY: an owned descriptor stays the same one until it is dropped, with the AsyncFd.
            let socket = unsafe { AsyncFd::register(socket) };
            let socket = socket.map_err(|error| failed(error.into()))?;
            tasks.push(tokio::spawn(watch(socket, ns.clone(), Arc::clone(changes))));
        }
        Ok(Self(tasks))
    }
}

fn listen(protocol: SockProtocol, groups: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

async fn watch(socket: AsyncFd<OwnedFd>, ns: Ns, changes: Arc<Changes>) {
    let mut buffer = [0; 4096];
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        let fd = socket.as_raw_fd();
        match recv(fd, &mut buffer, MsgFlags::empty()) {
            Ok(length) if worth_a_look(&buffer[..length]) => changes.note(&ns),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => ready.clear_ready(),
            // The kernel had more to say than the buffer holds: all the more reason to look.
            Err(Errno::ENOBUFS) => changes.note(&ns),
            Err(_) => return,
        }
    }
}

/// Whether a message is about more than what ARP learned or forgot by itself.
fn worth_a_look(message: &[u8]) -> bool {
    let (Some(kind), Some(family), Some(state)) =
        (message.get(4..6), message.get(16), message.get(24..26))
    else {
        return true;
    };
    let kind = u16::from_ne_bytes([kind[0], kind[1]]);
    let state = u16::from_ne_bytes([state[0], state[1]]);
    let learned = libc::NUD_INCOMPLETE
        | libc::NUD_REACHABLE
        | libc::NUD_STALE
        | libc::NUD_DELAY
        | libc::NUD_PROBE;
    let inet = i32::from(*family) == libc::AF_INET;
    !(kind == libc::RTM_NEWNEIGH && inet && state & learned != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_arp_learns_is_passed_over() {
        let mut message = vec![0; 40];
        message[4..6].copy_from_slice(&libc::RTM_NEWNEIGH.to_ne_bytes());
        message[16] = u8::try_from(libc::AF_INET).unwrap();
        message[24..26].copy_from_slice(&libc::NUD_REACHABLE.to_ne_bytes());
        assert!(!worth_a_look(&message));
        message[24..26].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
        assert!(worth_a_look(&message));
        message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        assert!(worth_a_look(&message));
        assert!(worth_a_look(&[]));
    }
}
