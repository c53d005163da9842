//! CA, NodeCA and Certificates: how a machine becomes a node and stays one.

use std::{net::IpAddr, time::Duration};

use async_trait::async_trait;
use skep_core::{
    api::{Node, node::IssuanceState, protobuf},
    id::Id,
    manager::ca::{self, JoinError},
    store::View,
    wire::{skep, swarmkit as pb},
};
use skep_host::clock;
use tonic::{Code, Request, Response, Status};

use super::{
    gate::Peer,
    services::{
        skep::certificates_server::Certificates,
        swarmkit::{ca_server::Ca, node_ca_server::NodeCa},
    },
    status::propose_status,
};
use crate::{
    identity::{Authority, NodeSubject, authority::DEFAULT_NODE_LIFE},
    manager::Manager,
};

/// How long a call for a certificate that is not signed yet is held.
const SIGNING_PATIENCE: Duration = Duration::from_secs(20);
/// How often a decision is made again when the state has moved on under it.
const MAX_TRIES: usize = 8;

/// The three services.
#[derive(Clone)]
pub struct AuthorityService(pub Manager);

#[async_trait]
impl Ca for AuthorityService {
    async fn get_root_ca_certificate(
        &self,
        _request: Request<pb::GetRootCaCertificateRequest>,
    ) -> Result<Response<pb::GetRootCaCertificateResponse>, Status> {
        let view = self.0.view();
        let cluster = view.cluster().ok_or_else(not_ready)?;
        let certificate = cluster.root_ca.certificate.clone().into_bytes();
        Ok(Response::new(pb::GetRootCaCertificateResponse {
            certificate,
        }))
    }
}

#[async_trait]
impl NodeCa for AuthorityService {
    async fn issue_node_certificate(
        &self,
        request: Request<pb::IssueNodeCertificateRequest>,
    ) -> Result<Response<pb::IssueNodeCertificateResponse>, Status> {
        let peer = Peer::of(&request)?;
        let message = request.into_inner();
        let csr = String::from_utf8(message.csr)
            .map_err(|_| Status::invalid_argument("csr: it is not PEM"))?;
        let renews = message.token.is_empty();
        let node_id = match peer.identity {
            Some(identity) if renews => self.renew(&identity.node_id, &csr).await?,
            Some(_) | None => {
                let availability = protobuf::read_availability(message.availability)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                let token = message.token.trim();
                let id = self.join(token, &csr, availability).await?;
                tracing::info!(node.id = %id, peer.addr = %peer.addr, "a node joins");
                id
            }
        };
        Ok(Response::new(pb::IssueNodeCertificateResponse {
            node_id: node_id.to_string(),
            node_membership: pb::node_spec::Membership::Accepted.into(),
        }))
    }

    async fn node_certificate_status(
        &self,
        request: Request<pb::NodeCertificateStatusRequest>,
    ) -> Result<Response<pb::NodeCertificateStatusResponse>, Status> {
        let node_id = request.into_inner().node_id;
        let id: Id<Node> = node_id
            .parse()
            .map_err(|_| Status::invalid_argument("node_id: it is no node id"))?;
        let mut states = self.0.raft().published().subscribe();
        let is_final = |view: &Option<View>| {
            let node = view.as_ref().and_then(|view| view.node(&id));
            node.is_none_or(|node| {
                let state = node.certificate.state;
                [
                    IssuanceState::Issued,
                    IssuanceState::Failed,
                    IssuanceState::Rotate,
                ]
                .contains(&state)
            })
        };
        let wait = states.wait_for(is_final);
        let Ok(Ok(view)) = tokio::time::timeout(SIGNING_PATIENCE, wait).await else {
            return Err(Status::deadline_exceeded(
                "the certificate is not signed yet",
            ));
        };
        let node = view.as_ref().and_then(|view| view.node(&id)).cloned();
        drop(view);
        let node = node.ok_or_else(|| Status::not_found(format!("node {id} not found")))?;
        let certificate = protobuf::certificate(&node);
        Ok(Response::new(pb::NodeCertificateStatusResponse {
            status: certificate.status.clone(),
            certificate: Some(certificate),
        }))
    }
}

impl AuthorityService {
    async fn join(
        &self,
        token: &str,
        csr: &str,
        availability: skep_core::api::Availability,
    ) -> Result<Id<Node>, Status> {
        for _ in 0..MAX_TRIES {
            let view = self.0.raft().linearizable().await.map_err(propose_status)?;
            let mut ctx = self.0.ctx().await;
            let (id, proposal) =
                ca::join(&view, token, csr, availability, &mut ctx).map_err(join_status)?;
            let Some(proposal) = proposal else {
                return Ok(id);
            };
            let proposed = self.0.raft().propose(proposal).await;
            if proposed.map_err(propose_status)?.is_ok() {
                return Ok(id);
            }
        }
        Err(Status::aborted("the cluster is changing, try again"))
    }

    async fn renew(&self, node: &Id<Node>, csr: &str) -> Result<Id<Node>, Status> {
        for _ in 0..MAX_TRIES {
            let view = self.0.raft().linearizable().await.map_err(propose_status)?;
            let ctx = self.0.ctx().await;
            let proposal = ca::renew(&view, node, csr, &ctx).map_err(join_status)?;
            let proposed = self.0.raft().propose(proposal).await;
            if proposed.map_err(propose_status)?.is_ok() {
                return Ok(node.clone());
            }
        }
        Err(Status::aborted("the node is changing, try again"))
    }
}

#[async_trait]
impl Certificates for AuthorityService {
    async fn issue_api_certificate(
        &self,
        request: Request<skep::IssueApiCertificateRequest>,
    ) -> Result<Response<skep::IssueApiCertificateResponse>, Status> {
        let peer = Peer::node(&request)?;
        let message = request.into_inner();
        let csr = String::from_utf8(message.csr)
            .map_err(|_| Status::invalid_argument("csr: it is not PEM"))?;
        let view = self.0.view();
        let cluster = view.cluster().ok_or_else(not_ready)?;
        let authority = Authority::from_pem(&cluster.root_ca.certificate, &cluster.root_ca.key)
            .map_err(|error| Status::internal(error.to_string()))?;
        let names: Vec<String> = message
            .names
            .into_iter()
            .filter(|name| !is_of_another(&view, &peer.node_id, name))
            .collect();
        let subject = NodeSubject {
            node_id: peer.node_id,
            role: peer.role,
            cluster_id: peer.cluster_id,
        };
        let certificate = authority
            .sign_api(
                &csr,
                &subject,
                &names,
                DEFAULT_NODE_LIFE,
                clock::timestamp(),
            )
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(skep::IssueApiCertificateResponse {
            certificate: certificate.into_bytes(),
        }))
    }
}

/// Whether a name or address is known as another node's: a node must not pass for it.
fn is_of_another(view: &View, node: &Id<Node>, name: &str) -> bool {
    let address = name.parse::<IpAddr>().ok();
    let local = name.eq_ignore_ascii_case("localhost")
        || address.is_some_and(|address| address.is_loopback());
    let others = view.nodes().filter(|other| other.id != *node);
    let taken = others.into_iter().any(|other| {
        let hostname = other.description.as_ref().map(|it| it.hostname.as_str());
        hostname.is_some_and(|it| it.eq_ignore_ascii_case(name))
            || (address.is_some() && other.status.addr == address)
    });
    if taken && !local {
        tracing::warn!(node.id = %node, name, "a node asks for an API certificate with another node's name: left out");
    }
    taken && !local
}

fn not_ready() -> Status {
    Status::aborted("the cluster is not ready, try again")
}

fn join_status(error: JoinError) -> Status {
    let code = match &error {
        JoinError::Token | JoinError::Request(_) => Code::InvalidArgument,
        JoinError::Node(_) => Code::PermissionDenied,
        JoinError::TooMany(_) => Code::FailedPrecondition,
        JoinError::NotReady => Code::Aborted,
    };
    Status::new(code, error.to_string())
}
