//! Nodes: update and remove.

use super::{done, names, unsupported};
use crate::{
    api::{ApiError, Cluster, ClusterResponse, Membership, Node, NodeSpec, NodeState, Role},
    manager::{Ctx, query, role},
    store::{Change, ObjectId, Proposal, View},
};

type Answer = Result<(Proposal, ClusterResponse), ApiError>;

pub(super) fn update(
    view: &View,
    reference: &str,
    version: u64,
    spec: &NodeSpec,
    ctx: &mut Ctx,
) -> Answer {
    let node = query::find_node(view, reference)?;
    if node.meta.version != version {
        return Err(ApiError::OutOfSequence);
    }
    names::check_labels("Labels", &spec.labels)?;
    if !spec.name.is_empty() {
        names::check_name("Name", &spec.name)?;
    }
    match (node.spec.role, spec.role) {
        (Role::Worker, Role::Manager) => role::check_promotion(view)?,
        (Role::Manager, Role::Worker) => role::check_demotion(view, &node.id)?,
        (Role::Manager, Role::Manager) | (Role::Worker, Role::Worker) => {}
    }
    if spec.membership != Membership::Accepted {
        return Err(unsupported("Membership pending"));
    }
    let mut node = Node::clone(&node);
    node.spec = spec.clone();
    node.meta.updated_at = ctx.now;
    Ok((Proposal::of([Change::put_node(node)]), done()))
}

pub(super) fn remove(view: &View, reference: &str, force: bool, ctx: &mut Ctx) -> Answer {
    let node = query::find_node(view, reference)?;
    if node.spec.role == Role::Manager || node.manager_status.is_some() {
        return Err(ApiError::Precondition(format!(
            "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
            node.id
        )));
    }
    if !force && node.status.state == NodeState::Ready {
        return Err(ApiError::Precondition(format!(
            "node {} is not down and can't be removed: let it leave first, or use force",
            node.id
        )));
    }
    let mut changes = vec![Change::Delete {
        object: ObjectId::Node(node.id.clone()),
        version: node.meta.version,
    }];
    // Its certificate is still good for a while, and must not be.
    if let Some(cluster) = view.cluster() {
        let mut cluster = Cluster::clone(cluster);
        cluster.removed_nodes.insert(node.id.clone(), ctx.now);
        cluster.meta.updated_at = ctx.now;
        changes.push(Change::put_cluster(cluster));
    }
    Ok((Proposal::of(changes), done()))
}
