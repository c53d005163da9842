//! Requests of users: a proposal that carries them out, or a refusal that names the field, the value
//! and what to do.

mod cluster;
mod container;
mod dependency;
mod mount;
mod names;
mod network;
mod node;
mod ports;
mod process;
mod reference;
mod service;
mod task;

use super::Ctx;
use crate::{
    api::{ApiError, ClusterRequest, ClusterResponse},
    store::{ApplyError, Proposal, View},
};

pub(crate) use cluster::check_spec as check_cluster_spec;
pub use names::{is_dns_label, random_name};

/// Decides a request over a view. When the proposal is refused at apply because the state has moved on,
/// the request is decided again over the new view; `refused` turns what is left into an answer.
///
/// # Errors
/// Why the request can't be carried out.
pub fn handle(
    view: &View,
    request: &ClusterRequest,
    ctx: &mut Ctx,
) -> Result<(Proposal, ClusterResponse), ApiError> {
    if view.cluster().is_none() {
        return Err(ApiError::Unavailable(
            "this node is not part of a swarm: use swarm init or swarm join first".to_owned(),
        ));
    }
    match request {
        ClusterRequest::ServiceCreate(spec) => service::create(view, spec, ctx),
        ClusterRequest::ServiceUpdate {
            service,
            version,
            spec,
            rollback,
        } => service::update(view, service, *version, spec, *rollback, ctx),
        ClusterRequest::ServiceRemove(service) => service::remove(view, service, ctx),
        ClusterRequest::NetworkCreate(spec) => network::create(view, spec, ctx),
        ClusterRequest::NetworkRemove(network) => network::remove(view, network),
        ClusterRequest::SecretCreate(spec) => dependency::create_secret(view, spec, ctx),
        ClusterRequest::SecretUpdate {
            secret,
            version,
            spec,
        } => dependency::update_secret(view, secret, *version, spec, ctx),
        ClusterRequest::SecretRemove(secret) => dependency::remove_secret(view, secret),
        ClusterRequest::ConfigCreate(spec) => dependency::create_config(view, spec, ctx),
        ClusterRequest::ConfigUpdate {
            config,
            version,
            spec,
        } => dependency::update_config(view, config, *version, spec, ctx),
        ClusterRequest::ConfigRemove(config) => dependency::remove_config(view, config),
        ClusterRequest::NodeUpdate {
            node,
            version,
            spec,
        } => node::update(view, node, *version, spec, ctx),
        ClusterRequest::NodeRemove { node, force } => node::remove(view, node, *force, ctx),
        ClusterRequest::ClusterUpdate {
            version,
            spec,
            new_worker_token,
            new_manager_token,
            drawn_unlock_key,
            rotate_unlock_key,
        } => {
            let rotation = cluster::Rotation {
                worker_token: new_worker_token.as_deref(),
                manager_token: new_manager_token.as_deref(),
                drawn_unlock_key,
                unlock_key: *rotate_unlock_key,
            };
            cluster::update(view, *version, spec, &rotation, ctx)
        }
    }
}

/// The answer to a user whose proposal was refused at apply.
#[must_use]
pub fn refused(error: &ApplyError) -> ApiError {
    match error {
        ApplyError::Stale { .. } | ApplyError::OutOfSequence { .. } => ApiError::OutOfSequence,
        ApplyError::NameTaken { .. }
        | ApplyError::PortTaken { .. }
        | ApplyError::SubnetTaken { .. } => ApiError::Conflict(error.to_string()),
        ApplyError::WentBack { .. }
        | ApplyError::NetworkInUse { .. }
        | ApplyError::NoDependency { .. }
        | ApplyError::DependencyInUse { .. } => ApiError::Precondition(error.to_string()),
        ApplyError::NoNetwork(target) => ApiError::NotFound {
            kind: "network",
            reference: target.clone(),
        },
    }
}

/// Whether deciding the request again over a newer view may help.
#[must_use]
pub fn worth_another_try(error: &ApplyError) -> bool {
    matches!(
        error,
        ApplyError::Stale { .. } | ApplyError::OutOfSequence { .. }
    )
}

fn done() -> ClusterResponse {
    ClusterResponse::Done {
        warnings: Vec::new(),
    }
}

fn invalid(field: impl Into<String>, why: impl Into<String>) -> ApiError {
    ApiError::Invalid {
        field: field.into(),
        why: why.into(),
    }
}

/// Refuses a field that Docker knows and Skep does not support yet.
fn unsupported(field: impl Into<String>) -> ApiError {
    ApiError::Unsupported(field.into())
}

/// Whether Docker would fill in a text for each task: what has braces and is no template fails there too.
fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// Whether a JSON value says nothing: null, or nothing but empty values.
fn is_empty(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}
