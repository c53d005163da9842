//! Listening sockets that outlive a restart of the daemon: the service manager keeps them, and whoever
//! connects meanwhile waits instead of being refused.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use skep_host::systemd::ServiceManager;
use tokio::net::TcpListener;

/// The name of the cluster's port in the service manager's store.
pub const CLUSTER: &str = "port-2377";
/// The name of the Engine API's port there.
pub const API: &str = "port-2376";

/// The sockets.
pub struct Ports {
    manager: Arc<ServiceManager>,
    listen: IpAddr,
    kept: Mutex<BTreeMap<String, StdListener>>,
}

impl Ports {
    /// Takes up those sockets of an earlier life that are ours; the others are given back.
    #[must_use]
    pub fn new(
        manager: Arc<ServiceManager>,
        listen: IpAddr,
        inherited: Vec<(String, OwnedFd)>,
    ) -> (Self, Vec<(String, OwnedFd)>) {
        let (ours, others): (Vec<_>, Vec<_>) = inherited
            .into_iter()
            .partition(|(name, _)| [CLUSTER, API].contains(&name.as_str()));
        let kept = ours
            .into_iter()
            .map(|(name, descriptor)| (name, StdListener::from(descriptor)))
            .collect();
        let ports = Self {
            manager,
            listen,
            kept: Mutex::new(kept),
        };
        (ports, others)
    }

    /// A listener on the port: the one that is kept under this name, or a new one, which is kept then.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn open(&self, name: &str, port: u16) -> io::Result<TcpListener> {
        let address = SocketAddr::new(self.listen, port);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |listener: &StdListener| listener.local_addr().is_ok_and(|it| it == address);
        if !kept.get(name).is_some_and(fits) {
            // What is kept for another address is of no use any more.
            kept.remove(name);
            let listener = StdListener::bind(address)?;
            if let Err(error) = self.manager.store(name, listener.as_fd()) {
                tracing::warn!(error = %error.chain(), "a restart of the daemon will refuse connections: {}", error.chain());
            }
            kept.insert(name.to_owned(), listener);
        }
        let listener = kept.get(name).ok_or(io::ErrorKind::NotFound)?.try_clone()?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    }

    /// Closes a port for good.
    pub fn close(&self, name: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.remove(name).is_some()
            && let Err(error) = self.manager.remove(name)
        {
            tracing::warn!(error = %error.chain(), "the service manager keeps a closed port: {}", error.chain());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ports(inherited: Vec<(String, OwnedFd)>) -> (Ports, Vec<(String, OwnedFd)>) {
        let manager = Arc::new(ServiceManager::connect(None).unwrap());
        Ports::new(manager, Ipv4Addr::LOCALHOST.into(), inherited)
    }

    #[tokio::test]
    async fn a_kept_socket_is_used_again_and_others_are_given_back() {
        let before = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = before.local_addr().unwrap().port();
        // It waits in the kernel while nobody is there to accept it.
        let _waiting = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let other = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let inherited = vec![
            (CLUSTER.to_owned(), OwnedFd::from(before)),
            ("dns".to_owned(), OwnedFd::from(other)),
        ];
        let (ports, others) = ports(inherited);
        assert_eq!(others.len(), 1);
        let listener = ports.open(CLUSTER, port).unwrap();
        listener.accept().await.unwrap();
        drop(listener);
        ports.open(CLUSTER, port).unwrap();
        ports.close(CLUSTER);
        assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    }
}
