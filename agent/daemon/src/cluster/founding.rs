//! How a swarm begins.

use std::net::{IpAddr, SocketAddr};

use skep_core::{
    api::{Role, RootCa, cluster::JoinTokens},
    id::Id,
    manager::found::Foundation,
    store::Proposal,
    system::config::Config,
    wire::{token::JoinToken, unlock::UnlockKey},
};
use skep_host::{clock, entropy};

use super::InitParams;
use crate::{
    identity::{
        Authority, IdentityError, KeyAndRequest, NodeIdentity, NodeSubject, Vault,
        authority::DEFAULT_NODE_LIFE, certificate,
    },
    manager::Manager,
    raft::{Member, raft_id},
    rpc::CLUSTER_PORT,
};

/// Writes the first entry; the identity is saved last, so that a crash before that begins anew.
pub(super) async fn begin(
    vault: &Vault,
    manager: &Manager,
    identity: &NodeIdentity,
    advertise: IpAddr,
    proposal: Proposal,
) -> Result<(), String> {
    let member = Member {
        node_id: identity.node_id.to_string(),
        addr: SocketAddr::new(advertise, CLUSTER_PORT).to_string(),
    };
    let raft = manager.raft();
    raft.begin(member)
        .await
        .map_err(|error| error.to_string())?;
    raft.lead().await.map_err(|error| error.to_string())?;
    let written = raft.propose(proposal).await;
    let applied = written.map_err(|error| error.to_string())?;
    applied.map_err(|error| error.to_string())?;
    vault.set_node(identity).map_err(|error| error.to_string())
}

/// Draws or takes up all that a new swarm is made from.
pub(super) fn foundation(
    config: &Config,
    params: InitParams,
    advertise: IpAddr,
) -> Result<(NodeIdentity, Foundation), IdentityError> {
    let now = clock::timestamp();
    let authority = match &config.ca {
        Some(bundle) => {
            let (certificate, key) = certificate::split_bundle(bundle);
            Authority::from_pem(&certificate, &key)?
        }
        None => Authority::generate("swarm-ca", now)?,
    };
    let root = authority.certificate().to_owned();
    let token = || -> Result<String, IdentityError> {
        Ok(JoinToken::new(root.as_bytes(), entropy::bits128()?).to_string())
    };
    let pins = |token: &str| JoinToken::parse(token).is_ok_and(|token| token.pins(root.as_bytes()));
    let tokens = config.tokens.as_ref();
    if tokens.is_some_and(|tokens| !pins(&tokens.worker) || !pins(&tokens.manager)) {
        let why = "they are not of the authority in skep.ca: give both as skep gen swarm made them";
        return Err(IdentityError::malformed("skep.tokens", why));
    }
    let join_tokens = match tokens {
        Some(tokens) => JoinTokens {
            worker: tokens.worker.clone(),
            manager: tokens.manager.clone(),
        },
        None => JoinTokens {
            worker: token()?,
            manager: token()?,
        },
    };
    let subject = NodeSubject {
        node_id: Id::from_entropy(entropy::bits128()?),
        role: Role::Manager,
        cluster_id: Id::from_entropy(entropy::bits128()?),
    };
    let KeyAndRequest { key, request } = KeyAndRequest::draw()?;
    let certificate = authority.sign_node(&request, &subject, DEFAULT_NODE_LIFE, now)?;
    let identity = NodeIdentity {
        node_id: subject.node_id.clone(),
        cluster_id: subject.cluster_id.clone(),
        role: subject.role,
        key,
        certificate: certificate.clone(),
        root: root.clone(),
    };
    let foundation = Foundation {
        cluster_id: subject.cluster_id,
        root_ca: RootCa {
            certificate: root,
            key: authority.key(),
            join_tokens,
        },
        spec: params.spec,
        drawn_unlock_key: UnlockKey::new(entropy::bits256()?),
        default_addr_pool: params.default_addr_pool,
        subnet_size: params.subnet_size,
        data_path_port: params.data_path_port,
        raft_id: raft_id(&subject.node_id),
        node_id: subject.node_id,
        certificate,
        addr: advertise,
        manager_addr: SocketAddr::new(advertise, CLUSTER_PORT).to_string(),
        availability: params.availability,
    };
    Ok((identity, foundation))
}
