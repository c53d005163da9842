//! A descriptor of each network namespace in systemd's descriptor store: a namespace outlives the daemon also where its place
//! below `/run` does not, and gets that place back.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use skep_core::network::{NetOp, Ns, Step};
use skep_host::{HostError, netns::Namespaces, systemd::ServiceManager};

/// Before the namespace's name, in the store.
const PREFIX: &str = "netns-";

/// The namespaces and the store.
pub struct KeptNamespaces {
    namespaces: Namespaces,
    manager: Arc<ServiceManager>,
}

impl KeptNamespaces {
    /// Takes up what an earlier life has stored, and gives back the descriptors that are not of namespaces. One that is
    /// mounted nowhere any more is mounted again: whether it is still wanted, the next pass over the network decides.
    #[must_use]
    pub fn adopt(
        namespaces: Namespaces,
        manager: Arc<ServiceManager>,
        inherited: Vec<(String, OwnedFd)>,
    ) -> (Self, Vec<(String, OwnedFd)>) {
        let (ours, others): (Vec<_>, Vec<_>) = inherited
            .into_iter()
            .partition(|(name, _)| name.starts_with(PREFIX));
        let kept = Self {
            namespaces,
            manager,
        };
        for (stored, descriptor) in ours {
            let name = stored.strip_prefix(PREFIX).unwrap_or(&stored);
            match kept.namespaces.restore(name, descriptor.as_fd()) {
                Ok(true) => {}
                // Its name is another's now.
                Ok(false) => {
                    kept.forget(name);
                    kept.store(name);
                }
                Err(error) => {
                    tracing::warn!(namespace = name, error = %error.chain(), "a stored namespace is of no use: {}", error.chain());
                    kept.forget(name);
                }
            }
        }
        (kept, others)
    }

    /// To be called before steps are carried out: a descriptor would keep alive what they delete, or what a foreign hand has
    /// unmounted and they make anew.
    pub(super) fn before(&self, ops: &[NetOp]) {
        let ends = |step: &Step| matches!(step, Step::DeleteNamespace | Step::CreateNamespace);
        for name in named(ops, ends) {
            self.forget(name);
        }
    }

    /// To be called after it.
    pub(super) fn after(&self, ops: &[NetOp]) {
        for name in named(ops, |step| matches!(step, Step::CreateNamespace)) {
            self.store(name);
        }
    }

    fn store(&self, name: &str) {
        let stored = || -> Result<(), HostError> {
            let namespace = self.namespaces.open(name)?;
            self.manager
                .store(&format!("{PREFIX}{name}"), namespace.as_fd())
        };
        // One that could not be made is not there either; the steps say so.
        if let Err(error) = stored() {
            tracing::debug!(namespace = name, error = %error.chain(), "a namespace is not stored: {}", error.chain());
        }
    }

    fn forget(&self, name: &str) {
        if let Err(error) = self.manager.remove(&format!("{PREFIX}{name}")) {
            tracing::warn!(namespace = name, error = %error.chain(), "a stored namespace stays: {}", error.chain());
        }
    }
}

fn named(ops: &[NetOp], wanted: impl Fn(&Step) -> bool) -> impl Iterator<Item = &str> {
    ops.iter()
        .filter(move |op| wanted(&op.step))
        .filter_map(|op| match &op.ns {
            Ns::Named(name) => Some(name.as_str()),
            Ns::Host => None,
        })
}
