//! The certificate of 2376: signed by the cluster's authority once the node is in a swarm, by itself
//! before.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use skep_core::{
    api::Role, store::View, system::config::Config, time::Timestamp,
    wire::skep::IssueApiCertificateRequest,
};
use skep_host::{clock, machine};
use tokio::sync::watch;

use super::node::Running;
use crate::{
    identity::{
        Authority, IdentityError, KeyAndRequest, NodeSubject, Vault,
        authority::{DEFAULT_NODE_LIFE, may_be_named, self_signed_api},
        certificate,
        storage::ApiIdentity,
        tls,
        tls::CertificateCell,
    },
    rpc::{
        dial::{Dialer, MANAGER},
        services::skep::certificates_client::CertificatesClient,
    },
};

/// Pause after an attempt that failed.
const RETRY: Duration = Duration::from_secs(5);
/// Time for one attempt.
const PATIENCE: Duration = Duration::from_secs(5);

/// The TLS settings of 2376; none without an operators' authority.
pub type ApiTls = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Keeps the certificate.
pub struct ApiCertificate {
    cell: Arc<CertificateCell>,
    hostname: String,
    current: Option<ApiIdentity>,
    fingerprint: watch::Sender<String>,
    not_before: Timestamp,
}

impl ApiCertificate {
    /// The certificate of a node with this name, and the TLS settings of 2376; none without an operators'
    /// authority.
    ///
    /// # Errors
    /// When the operators' root is damaged.
    pub fn new(hostname: &str, config: &Config) -> Result<(Self, ApiTls), IdentityError> {
        let cell = Arc::new(CertificateCell::default());
        let operators = config.operator_ca.as_ref();
        let server = operators
            .map(|root| tls::api_server(root, Arc::clone(&cell)))
            .transpose()?;
        // The cell changes under the settings, so these stay the same.
        let (_, settings) = watch::channel(server);
        let api = Self {
            cell,
            hostname: hostname.to_owned(),
            current: None,
            fingerprint: watch::Sender::new(String::new()),
            not_before: Timestamp::default(),
        };
        Ok((api, settings))
    }

    /// The names and addresses by which operators may reach this node; `role` is none outside a swarm.
    pub(super) fn names(&self, config: &Config, role: Option<Role>) -> Vec<String> {
        let mut names = vec![self.hostname.clone(), "localhost".to_owned()];
        names.push(Ipv4Addr::LOCALHOST.to_string());
        names.extend(config.advertise.map(|address| address.to_string()));
        names.extend(machine::addresses().iter().map(ToString::to_string));
        names.extend(config.api_names.iter().cloned());
        // A node may be called by a name that only node certificates may have: then its certificate has the other
        // names and the addresses. A manager may be called `swarm-manager`, but only if that is its own name.
        let own = |name: &str| name.eq_ignore_ascii_case(&self.hostname);
        names.retain(|name| {
            let address = name.parse::<std::net::IpAddr>().is_ok();
            address || may_be_named(name, role.filter(|_| own(name)))
        });
        names.sort();
        names.dedup();
        names
    }

    /// Makes the certificate what it should be, if it is not. One that is good enough stays in use until
    /// a better one is there.
    pub(super) async fn refresh(
        &mut self,
        vault: &Vault,
        node: Option<(&Running, Vec<(String, String)>)>,
        view: Option<&View>,
        names: Vec<String>,
    ) {
        let now = clock::timestamp();
        if self.current.is_none() {
            self.use_saved(vault);
        }
        if self.is_good(node.is_some(), &names, now) || now < self.not_before {
            return;
        }
        let made = match node {
            Some((running, managers)) => {
                // A machine in no swarm serves nothing yet, so something is put in place at once.
                let work = issue(running, &managers, view, &names);
                match tokio::time::timeout(PATIENCE, work).await {
                    Ok(made) => made,
                    Err(_) => Err("no manager answers".to_owned()),
                }
            }
            None => self_signed(&names),
        };
        match made {
            Ok(api) => self.take(vault, api),
            Err(error) => {
                tracing::warn!(%error, "the API certificate could not be made, trying again: {error}");
                self.not_before = now + RETRY;
                if self.current.is_none() {
                    match self_signed(&names) {
                        Ok(api) => self.put(api),
                        Err(error) => {
                            tracing::error!(%error, "there is no API certificate: {error}")
                        }
                    }
                }
            }
        }
    }

    /// Uses the saved certificate unless one is in use: that of a manager that waits to be unlocked. Says whether there
    /// is one now.
    pub(super) fn resume(&mut self, vault: &Vault) -> bool {
        if self.current.is_none() {
            self.use_saved(vault);
        }
        self.current.is_some()
    }

    /// SHA-256 of the certificate in use; empty before there is one.
    #[must_use]
    pub fn fingerprints(&self) -> watch::Receiver<String> {
        self.fingerprint.subscribe()
    }

    fn use_saved(&mut self, vault: &Vault) {
        match vault.api() {
            Ok(Some(api)) => self.put(api),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the saved API certificate cannot be read: {error}")
            }
        }
    }

    fn take(&mut self, vault: &Vault, api: ApiIdentity) {
        if let Err(error) = vault.set_api(&api) {
            tracing::warn!(%error, "the API certificate could not be saved: {error}");
        }
        self.put(api);
        let fingerprint = self.fingerprint.borrow().clone();
        tracing::info!(%fingerprint, "a new API certificate is in use");
    }

    fn put(&mut self, api: ApiIdentity) {
        match self.cell.set(&api.certificate, &api.key) {
            Ok(()) => {
                let fingerprint = certificate::fingerprint(&api.certificate).unwrap_or_default();
                self.fingerprint.send_replace(fingerprint);
                self.current = Some(api);
            }
            Err(error) => tracing::warn!(%error, "an API certificate cannot be used: {error}"),
        }
    }

    fn is_good(&self, member: bool, names: &[String], now: Timestamp) -> bool {
        let Some(current) = &self.current else {
            return false;
        };
        let Ok((from, until)) = certificate::validity(&current.certificate) else {
            return false;
        };
        let fresh = now < from + until.since(from).mul_f64(0.7);
        // Addresses that are not there yet, or not any more, are no reason for another one.
        let known = names.iter().all(|name| current.names.contains(name));
        fresh && known && current.by_cluster == member
    }
}

fn self_signed(names: &[String]) -> Result<ApiIdentity, String> {
    let (certificate, key) =
        self_signed_api(names, clock::timestamp()).map_err(|error| error.to_string())?;
    Ok(ApiIdentity {
        key,
        certificate,
        names: names.to_vec(),
        by_cluster: false,
    })
}

/// A manager signs by itself, a worker asks a manager.
async fn issue(
    running: &Running,
    managers: &[(String, String)],
    view: Option<&View>,
    names: &[String],
) -> Result<ApiIdentity, String> {
    let KeyAndRequest { key, request } =
        KeyAndRequest::draw().map_err(|error| error.to_string())?;
    let certificate = match view.and_then(|view| view.cluster()) {
        Some(cluster) => {
            let subject = NodeSubject {
                node_id: running.identity.node_id.clone(),
                role: running.identity.role,
                cluster_id: running.identity.cluster_id.clone(),
            };
            let root = &cluster.root_ca;
            Authority::from_pem(&root.certificate, &root.key)
                .and_then(|authority| {
                    let now = clock::timestamp();
                    authority.sign_api(&request, &subject, names, DEFAULT_NODE_LIFE, now)
                })
                .map_err(|error| error.to_string())?
        }
        None => ask(running, managers, &request, names).await?,
    };
    Ok(ApiIdentity {
        key,
        certificate,
        names: names.to_vec(),
        by_cluster: true,
    })
}

async fn ask(
    running: &Running,
    managers: &[(String, String)],
    request: &str,
    names: &[String],
) -> Result<String, String> {
    let cell = Arc::clone(&running.cell);
    let tls = tls::cluster_client(&running.identity.root, Some(cell))
        .map_err(|error| error.to_string())?;
    let dialer = Dialer::new(tls, MANAGER, Some(running.advertise));
    let mut last = "no manager is known".to_owned();
    for (_, addr) in managers {
        let channel = match dialer.dial(addr).await {
            Ok(channel) => channel,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        let message = IssueApiCertificateRequest {
            csr: request.as_bytes().to_vec(),
            names: names.to_vec(),
        };
        let answer = CertificatesClient::new(channel)
            .issue_api_certificate(message)
            .await;
        match answer {
            Ok(answer) => {
                return String::from_utf8(answer.into_inner().certificate)
                    .map_err(|_| "the certificate is no PEM".to_owned());
            }
            Err(status) => last = status.message().to_owned(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_has_its_own_name_even_if_it_is_that_of_managers() {
        let config = Config {
            api_names: vec!["swarm-manager".to_owned()],
            ..Config::default()
        };
        let names = |hostname: &str, role| {
            let (api, _) = ApiCertificate::new(hostname, &Config::default()).unwrap();
            api.names(&config, role)
        };
        let name = "swarm-manager".to_owned();
        assert!(names("swarm-manager", Some(Role::Manager)).contains(&name));
        assert!(!names("swarm-manager", Some(Role::Worker)).contains(&name));
        assert!(!names("swarm-manager", None).contains(&name));
        assert!(!names("node1", Some(Role::Manager)).contains(&name));
        let authority = "swarm-ca".to_owned();
        assert!(!names("swarm-ca", Some(Role::Manager)).contains(&authority));
    }
}
