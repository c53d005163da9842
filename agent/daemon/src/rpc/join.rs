//! How a machine becomes a node: root certificate by the token's pin, request, certificate. And how a
//! node renews what it is.

use std::{net::IpAddr, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use skep_core::{
    api::Availability,
    wire::{
        swarmkit::{self as pb, issuance_status::State},
        token::JoinToken,
    },
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, transport::Channel};

use super::{
    dial::{AUTHORITY, DialError, Dialer, MANAGER},
    services::swarmkit::{ca_client::CaClient, node_ca_client::NodeCaClient},
};
use crate::identity::{
    IdentityError, KeyAndRequest, NodeIdentity, PeerIdentity, Vault,
    certificate::{chain, check_root},
    storage::{JoinWish, Joining},
    tls::{self, CertificateCell},
};

/// Time for one call.
const CALL: Duration = Duration::from_secs(5);
/// Time for the call that a manager holds until the certificate is signed.
const SIGNING: Duration = Duration::from_secs(25);
/// Pause between two looks at a certificate that is not signed.
const POLL: Duration = Duration::from_millis(500);
/// How often a certificate is looked for.
const POLLS: u32 = 10;

/// Why a machine did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinFailure {
    /// Trying again will not help until something is changed.
    #[error("{0}")]
    Final(String),
    /// It may work later.
    #[error("{0}")]
    Temporary(String),
}

impl From<DialError> for JoinFailure {
    fn from(error: DialError) -> Self {
        Self::Temporary(error.to_string())
    }
}

impl From<IdentityError> for JoinFailure {
    fn from(error: IdentityError) -> Self {
        Self::Final(error.to_string())
    }
}

/// A manager's refusal: its own words, and whether they may change.
fn refusal(addr: &str, status: &Status) -> JoinFailure {
    let line = format!("the manager at {addr} answers: {}", status.message());
    let hopeless = [
        Code::InvalidArgument,
        Code::PermissionDenied,
        Code::Unimplemented,
    ];
    match hopeless.contains(&status.code()) {
        true => JoinFailure::Final(line),
        false => JoinFailure::Temporary(line),
    }
}

async fn within<T>(
    limit: Duration,
    addr: &str,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, JoinFailure> {
    match timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(refusal(addr, &status)),
        Err(_) => Err(JoinFailure::Temporary(format!(
            "the manager at {addr} does not answer"
        ))),
    }
}

/// One attempt to join by the manager at `addr`. A join that was begun before goes on where it was.
///
/// # Errors
/// One line, and whether trying again may help.
pub async fn join(
    vault: &Vault,
    token: &str,
    addr: &str,
    availability: Availability,
    from: Option<IpAddr>,
) -> Result<NodeIdentity, JoinFailure> {
    let parsed = JoinToken::parse(token).map_err(|error| JoinFailure::Final(error.to_string()))?;
    let begun = vault.joining()?;
    let wish = JoinWish {
        token_sha256: Sha256::digest(token.trim()).into(),
        availability,
    };
    let same = |begun: &Joining| begun.wish == wish && parsed.pins(begun.root.as_bytes());
    let begun = begun.filter(same);
    let joining = match begun {
        Some(joining) => joining,
        None => begin(vault, token, &parsed, addr, wish, from).await?,
    };
    let tls = tls::cluster_client(&joining.root, None)?;
    let channel = Dialer::new(tls, AUTHORITY, from).dial(addr).await?;
    let fetched = fetch(channel, addr, &joining).await;
    if let Err(Fetch::Unknown) = fetched {
        // The managers have forgotten this join, for instance because they began anew: so do we.
        vault.set_joining(None)?;
    }
    let identity = fetched.map_err(|error| error.into_failure(addr))?;
    vault.set_node(&identity)?;
    Ok(identity)
}

async fn begin(
    vault: &Vault,
    token: &str,
    parsed: &JoinToken,
    addr: &str,
    wish: JoinWish,
    from: Option<IpAddr>,
) -> Result<Joining, JoinFailure> {
    let root = fetch_root(parsed, addr, from).await?;
    let KeyAndRequest { key, request } = KeyAndRequest::draw()?;
    let tls = tls::cluster_client(&root, None)?;
    let channel = Dialer::new(tls, AUTHORITY, from).dial(addr).await?;
    let message = issue(&request, token, wish.availability);
    let mut client = NodeCaClient::new(channel);
    let answer = within(CALL, addr, client.issue_node_certificate(message)).await?;
    let joining = Joining {
        node_id: answer.node_id.parse().map_err(|_| {
            JoinFailure::Temporary(format!("the manager at {addr} gave no valid node id"))
        })?,
        key,
        request,
        root,
        wish,
    };
    vault.set_joining(Some(&joining))?;
    Ok(joining)
}

fn issue(
    request: &str,
    token: &str,
    availability: Availability,
) -> pb::IssueNodeCertificateRequest {
    let availability = match availability {
        Availability::Active => pb::node_spec::Availability::Active,
        Availability::Pause => pb::node_spec::Availability::Pause,
        Availability::Drain => pb::node_spec::Availability::Drain,
    };
    pb::IssueNodeCertificateRequest {
        role: pb::NodeRole::Worker.into(),
        csr: request.as_bytes().to_vec(),
        token: token.to_owned(),
        availability: availability.into(),
    }
}

/// The root certificate: whoever answers, the answer is what the token pins.
async fn fetch_root(
    token: &JoinToken,
    addr: &str,
    from: Option<IpAddr>,
) -> Result<String, JoinFailure> {
    let channel = Dialer::new(tls::bootstrap_client()?, AUTHORITY, from)
        .dial(addr)
        .await?;
    let mut client = CaClient::new(channel);
    let call = client.get_root_ca_certificate(pb::GetRootCaCertificateRequest {});
    let root = within(CALL, addr, call).await?.certificate;
    if !token.pins(&root) {
        return Err(JoinFailure::Final(format!(
            "the root certificate of the manager at {addr} is not the one that the join token names (CA digest mismatch)"
        )));
    }
    check_root(&root)?;
    String::from_utf8(root)
        .map_err(|_| JoinFailure::Final(format!("the root certificate of {addr} is no PEM")))
}

/// Why a certificate was not fetched.
enum Fetch {
    Failure(JoinFailure),
    /// The manager does not know the node.
    Unknown,
}

impl Fetch {
    fn into_failure(self, addr: &str) -> JoinFailure {
        match self {
            Fetch::Failure(failure) => failure,
            Fetch::Unknown => {
                JoinFailure::Temporary(format!("the manager at {addr} does not know this node"))
            }
        }
    }
}

/// Waits for the certificate of a request.
async fn fetch(channel: Channel, addr: &str, joining: &Joining) -> Result<NodeIdentity, Fetch> {
    let mut client = NodeCaClient::new(channel);
    for _ in 0..POLLS {
        let request = pb::NodeCertificateStatusRequest {
            node_id: joining.node_id.to_string(),
        };
        let call = timeout(SIGNING, client.node_certificate_status(request)).await;
        let response = match call {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if status.code() == Code::NotFound => return Err(Fetch::Unknown),
            Ok(Err(status)) => return Err(Fetch::Failure(refusal(addr, &status))),
            Err(_) => continue,
        };
        let certificate = response.certificate.unwrap_or_default();
        let status = response.status.unwrap_or_default();
        let ours = certificate.csr == joining.request.as_bytes();
        match status.state() {
            State::Issued | State::Rotate if ours => {
                return accept(certificate.certificate, joining).map_err(Fetch::Failure);
            }
            State::Failed if ours => {
                let line = format!(
                    "the manager at {addr} refused the certificate: {}",
                    status.err
                );
                return Err(Fetch::Failure(JoinFailure::Final(line)));
            }
            State::Unknown
            | State::Renew
            | State::Pending
            | State::Issued
            | State::Failed
            | State::Rotate => sleep(POLL).await,
        }
    }
    let line = format!("the manager at {addr} has not signed the certificate yet");
    Err(Fetch::Failure(JoinFailure::Temporary(line)))
}

/// Checks what was signed: for this node, with this key, by this root.
fn accept(pem: Vec<u8>, joining: &Joining) -> Result<NodeIdentity, JoinFailure> {
    let what = "issued certificate";
    let certificate =
        String::from_utf8(pem).map_err(|_| IdentityError::malformed(what, "it is no PEM"))?;
    let leaf = chain(certificate.as_bytes(), what)?;
    let peer = PeerIdentity::of(&leaf[0])?;
    if peer.node_id != joining.node_id {
        return Err(IdentityError::malformed(what, "it is for another node").into());
    }
    CertificateCell::default().set(&certificate, &joining.key)?;
    Ok(NodeIdentity {
        node_id: peer.node_id,
        cluster_id: peer.cluster_id,
        role: peer.role,
        key: joining.key.clone(),
        certificate,
        root: joining.root.clone(),
    })
}

/// Renews the certificate of a node by the manager at `addr`, with a new key.
///
/// # Errors
/// One line, and whether trying again may help.
pub async fn renew(
    identity: &NodeIdentity,
    cell: Arc<CertificateCell>,
    addr: &str,
    from: Option<IpAddr>,
) -> Result<NodeIdentity, JoinFailure> {
    let tls = tls::cluster_client(&identity.root, Some(cell))?;
    let channel = Dialer::new(tls, MANAGER, from).dial(addr).await?;
    let KeyAndRequest { key, request } = KeyAndRequest::draw()?;
    let mut client = NodeCaClient::new(channel.clone());
    let message = issue(&request, "", Availability::Active);
    within(CALL, addr, client.issue_node_certificate(message)).await?;
    let joining = Joining {
        node_id: identity.node_id.clone(),
        key,
        request,
        root: identity.root.clone(),
        wish: JoinWish::default(),
    };
    fetch(channel, addr, &joining)
        .await
        .map_err(|error| error.into_failure(addr))
}
