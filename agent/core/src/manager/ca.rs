//! Who may join the cluster, and as what. Signing is an effect of the daemon; every decision is here.

use super::{Ctx, dispatcher::Refused};
use crate::{
    api::{
        Availability, Cluster, Meta, Node, NodeSpec, NodeStatus, Role,
        node::{Certificate, IssuanceState},
    },
    id::Id,
    store::{Change, Proposal, View},
    wire::token,
};

/// The longest certificate request that is looked at, in bytes of PEM.
const MAX_CSR: usize = 16 * 1024;

/// Why a node may not join or renew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Neither of the cluster's tokens; `InvalidArgument` on the wire.
    #[error(
        "A valid join token is necessary to join this cluster: this one is unknown or was rotated"
    )]
    Token,
    /// Not a PEM certificate request of sane length; `InvalidArgument`.
    #[error("invalid certificate request: {0}")]
    Request(&'static str),
    /// The node is unknown or was removed; `PermissionDenied`.
    #[error(transparent)]
    Node(#[from] Refused),
    /// There are as many managers as there can be; `FailedPrecondition`.
    #[error("{0}")]
    TooMany(String),
    /// No cluster yet; `Aborted`.
    #[error("the cluster is not ready: try again")]
    NotReady,
}

/// The role that a token gives. Takes the same time whatever the token is.
///
/// # Errors
/// [`JoinError::Token`] or [`JoinError::NotReady`].
pub fn role_of_token(cluster: &Cluster, token: &str) -> Result<Role, JoinError> {
    let tokens = &cluster.root_ca.join_tokens;
    let manager = same(&tokens.manager, token);
    let worker = same(&tokens.worker, token);
    match (manager, worker) {
        (true, _) => Ok(Role::Manager),
        (false, true) => Ok(Role::Worker),
        (false, false) => Err(JoinError::Token),
    }
}

/// An empty secret equals nothing.
fn same(secret: &str, given: &str) -> bool {
    token::same(secret, given) && !secret.is_empty()
}

/// A new node, or the one that the same request made before: a node that did not hear the answer asks
/// again, and must not become two.
///
/// # Errors
/// See [`JoinError`].
pub fn join(
    view: &View,
    token: &str,
    csr: &str,
    availability: Availability,
    ctx: &mut Ctx,
) -> Result<(Id<Node>, Option<Proposal>), JoinError> {
    let cluster = view.cluster().ok_or(JoinError::NotReady)?;
    let role = role_of_token(cluster, token)?;
    check_request(csr)?;
    let before = view.nodes().find(|node| node.certificate.csr == csr);
    if let Some(node) = before.filter(|node| node.certificate.role == role) {
        return Ok((node.id.clone(), None));
    }
    if role == Role::Manager {
        super::role::check_promotion(view)
            .map_err(|error| JoinError::TooMany(error.to_string()))?;
    }
    let id = Id::draw(&mut ctx.rng);
    let node = Node {
        id: id.clone(),
        meta: Meta {
            version: 0,
            created_at: ctx.now,
            updated_at: ctx.now,
        },
        spec: NodeSpec {
            role,
            availability,
            ..NodeSpec::default()
        },
        description: None,
        status: NodeStatus {
            since: ctx.now,
            ..NodeStatus::default()
        },
        manager_status: None,
        certificate: Certificate {
            role,
            csr: csr.to_owned(),
            state: IssuanceState::Pending,
            ..Certificate::default()
        },
        networks: Vec::new(),
    };
    Ok((id, Some(Proposal::of([Change::put_node(node)]))))
}

/// A new certificate for a node that has one; its role is the one that it shall have now.
///
/// # Errors
/// See [`JoinError`].
pub fn renew(view: &View, node: &Id<Node>, csr: &str, ctx: &Ctx) -> Result<Proposal, JoinError> {
    check_node(view, node)?;
    check_request(csr)?;
    let known = view
        .node(node)
        .ok_or_else(|| Refused::UnknownNode(node.clone()))?;
    let mut next = Node::clone(known);
    next.certificate = Certificate {
        role: next.role(),
        csr: csr.to_owned(),
        state: IssuanceState::Renew,
        ..Certificate::default()
    };
    next.meta.updated_at = ctx.now;
    Ok(Proposal::of([Change::put_node(next)]))
}

/// Whether a node with a good certificate still belongs to the cluster.
///
/// # Errors
/// [`Refused::Removed`] or [`Refused::UnknownNode`].
pub fn check_node(view: &View, node: &Id<Node>) -> Result<(), Refused> {
    super::dispatcher::known(view, node)
}

/// The nodes whose requests wait for a signature. Level-triggered: ask again after each commit.
pub fn unsigned(view: &View) -> impl Iterator<Item = &Node> {
    let nodes = view.nodes().map(|node| &**node);
    nodes.filter(|node| {
        matches!(
            node.certificate.state,
            IssuanceState::Pending | IssuanceState::Renew
        )
    })
}

/// Writes what came of signing a node's request: the PEM chain, or why it was refused. `None` if the
/// node is gone or has asked for another one meanwhile.
#[must_use]
pub fn signed(
    view: &View,
    node: &Id<Node>,
    csr: &str,
    outcome: Result<String, String>,
    ctx: &Ctx,
) -> Option<Proposal> {
    let known = view.node(node).filter(|node| node.certificate.csr == csr)?;
    let mut next = Node::clone(known);
    match outcome {
        Ok(chain) => {
            next.certificate.state = IssuanceState::Issued;
            next.certificate.certificate = chain;
            next.certificate.err = String::new();
        }
        Err(why) => {
            next.certificate.state = IssuanceState::Failed;
            next.certificate.err = why;
        }
    }
    next.meta.updated_at = ctx.now;
    Some(Proposal::of([Change::put_node(next)]))
}

fn check_request(csr: &str) -> Result<(), JoinError> {
    if csr.len() > MAX_CSR {
        return Err(JoinError::Request("it is longer than 16 KiB"));
    }
    let is_pem = csr
        .trim_start()
        .starts_with("-----BEGIN CERTIFICATE REQUEST-----");
    match is_pem {
        true => Ok(()),
        false => Err(JoinError::Request("it is not a PEM certificate request")),
    }
}
