//! DNS for containers: a server on 127.0.0.11:53 inside the network namespace of each.
//!
//! The protocol is hickory's; what to answer is decided by [`skep_core::network::dns`]; the loops are ours, because each
//! sandbox may be hostile and must find a bound on everything it can make us hold. The sockets are kept in
//! systemd's descriptor store: while skepd restarts, questions wait in them and none is refused.

mod forward;
mod reply;
mod serve;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skep_core::{
    network::dns::LISTEN, node::Names, rng::Rng, worker::container::plan::ContainerId,
};
use skep_host::{
    HostError,
    netns::{Namespaces, bind_in_netns},
    systemd::ServiceManager,
};
use tokio::sync::{Semaphore, watch};

use self::serve::{Server, Shared};

/// How the names of stored sockets begin; the name of the namespace follows.
const UDP_PREFIX: &str = "dns-udp-";
/// The same for TCP.
const TCP_PREFIX: &str = "dns-tcp-";
/// Questions of the whole node that are being forwarded at a time, as in Docker.
const MAX_FORWARDS: usize = 1024;

/// The DNS servers of this node's sandboxes. Cheap to clone.
#[derive(Clone)]
pub struct DnsServers {
    inner: Arc<Inner>,
}

struct Inner {
    names: watch::Sender<Option<Arc<Names>>>,
    shared: Arc<Shared>,
    namespaces: Namespaces,
    manager: Arc<ServiceManager>,
    /// By name of the namespace.
    servers: Mutex<BTreeMap<String, Server>>,
    /// Sockets of an earlier life: they speak once it is known what to say.
    adopted: Mutex<BTreeMap<String, (OwnedFd, OwnedFd)>>,
}

/// Whether a stored descriptor is one of this module's sockets.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.starts_with(UDP_PREFIX) || name.starts_with(TCP_PREFIX)
}

impl DnsServers {
    /// No server yet; `stored` are the sockets that systemd kept, by name. `seed` comes from the kernel.
    #[must_use]
    pub fn new(
        namespaces: Namespaces,
        manager: Arc<ServiceManager>,
        stored: Vec<(String, OwnedFd)>,
        seed: u64,
    ) -> Self {
        let (sender, names) = watch::channel(None);
        Self {
            inner: Arc::new(Inner {
                names: sender,
                shared: Arc::new(Shared {
                    names,
                    forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
                    rng: Mutex::new(Rng::seeded(seed)),
                }),
                namespaces,
                manager,
                servers: Mutex::default(),
                adopted: Mutex::new(pairs(stored)),
            }),
        }
    }

    /// From now on this is what questions are answered from. Servers of sandboxes that are not in it are closed.
    pub fn publish(&self, names: Names) {
        let live: BTreeSet<String> = names
            .sandboxes
            .values()
            .map(|one| one.short_id().to_owned())
            .collect();
        self.inner.names.send_replace(Some(Arc::new(names)));
        let adopted = std::mem::take(&mut *lock(&self.inner.adopted));
        for (sandbox, (udp, tcp)) in adopted {
            if live.contains(&sandbox) {
                if let Err(error) = self.start(&sandbox, udp.into(), tcp.into()) {
                    tracing::error!(sandbox, error = %error.chain(), "DNS: a stored socket is of no use: {}", error.chain());
                    self.forget(&sandbox);
                }
            } else {
                self.forget(&sandbox);
            }
        }
        let gone: Vec<String> = lock(&self.inner.servers)
            .keys()
            .filter(|one| !live.contains(*one))
            .cloned()
            .collect();
        for sandbox in gone {
            lock(&self.inner.servers).remove(&sandbox);
            self.forget(&sandbox);
        }
    }

    /// Serves a container's namespace, which is there with `lo` up; nothing if it is served already.
    ///
    /// # Errors
    /// When the sockets cannot be had.
    pub async fn open(&self, container: &ContainerId) -> Result<(), HostError> {
        let sandbox = container.short().to_owned();
        // A stored socket speaks as soon as names are published.
        if lock(&self.inner.servers).contains_key(&sandbox)
            || lock(&self.inner.adopted).contains_key(&sandbox)
        {
            return Ok(());
        }
        let (namespaces, name) = (self.inner.namespaces.clone(), sandbox.clone());
        let bound = tokio::task::spawn_blocking(move || {
            bind_in_netns(namespaces.open(&name)?.as_fd(), LISTEN)
        })
        .await;
        let (udp, tcp) =
            bound.map_err(|error| HostError::new("serve DNS in", sandbox.clone(), error))??;
        self.store(&sandbox, &udp, &tcp);
        self.start(&sandbox, udp, tcp)
    }

    fn start(
        &self,
        sandbox: &str,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
    ) -> Result<(), HostError> {
        let server = Server::start(Arc::clone(&self.inner.shared), sandbox, udp, tcp)
            .map_err(|error| HostError::new("serve DNS in", sandbox, error))?;
        lock(&self.inner.servers).insert(sandbox.to_owned(), server);
        Ok(())
    }

    /// Without the store a restart makes clients wait for a moment; that is no reason not to serve.
    fn store(&self, sandbox: &str, udp: &std::net::UdpSocket, tcp: &std::net::TcpListener) {
        let manager = &self.inner.manager;
        let stored = manager
            .store(&format!("{UDP_PREFIX}{sandbox}"), udp.as_fd())
            .and_then(|()| manager.store(&format!("{TCP_PREFIX}{sandbox}"), tcp.as_fd()));
        if let Err(error) = stored {
            tracing::warn!(sandbox, error = %error.chain(), "DNS: the sockets will not outlive a restart: {}", error.chain());
        }
    }

    fn forget(&self, sandbox: &str) {
        for prefix in [UDP_PREFIX, TCP_PREFIX] {
            if let Err(error) = self.inner.manager.remove(&format!("{prefix}{sandbox}")) {
                tracing::warn!(sandbox, error = %error.chain(), "DNS: a stored socket stays: {}", error.chain());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Joins the two sockets of each sandbox; one without the other is of no use.
fn pairs(stored: Vec<(String, OwnedFd)>) -> BTreeMap<String, (OwnedFd, OwnedFd)> {
    let (mut udp, mut tcp) = (BTreeMap::new(), BTreeMap::new());
    for (name, socket) in stored {
        if let Some(sandbox) = name.strip_prefix(UDP_PREFIX) {
            udp.insert(sandbox.to_owned(), socket);
        } else if let Some(sandbox) = name.strip_prefix(TCP_PREFIX) {
            tcp.insert(sandbox.to_owned(), socket);
        }
    }
    udp.into_iter()
        .filter_map(|(sandbox, udp)| Some((sandbox.clone(), (udp, tcp.remove(&sandbox)?))))
        .collect()
}
