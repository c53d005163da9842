//! `Service` documents.

use serde_json::{Map, Value, json};
use skep_core::{
    api::{Endpoint, JobStatus, ModeKind, Network, Service, ServiceSpec, UpdateStatus},
    id::Id,
    manager::query::ServiceStatus,
};

use super::object;
use crate::management::document;

/// The document of a service. `prefix` gives the prefix length of a network's subnet.
pub fn service(service: &Service, prefix: impl Fn(&Id<Network>) -> Option<u8>) -> Value {
    let mut out = object(service.id.as_str(), &service.meta);
    out.insert("Spec".to_owned(), document::json(&service.spec));
    if let Some(previous) = &service.previous_spec {
        out.insert("PreviousSpec".to_owned(), document::json(previous));
    }
    out.insert("Endpoint".to_owned(), endpoint(&service.endpoint, prefix));
    if let Some(status) = &service.update_status {
        out.insert("UpdateStatus".to_owned(), update_status(status));
    }
    if let Some(status) = &service.job_status {
        out.insert("JobStatus".to_owned(), job_status(status));
    }
    Value::Object(out)
}

fn job_status(status: &JobStatus) -> Value {
    json!({
        "JobIteration": { "Index": status.job_iteration },
        "LastExecution": status.last_execution,
    })
}

/// Adds `ServiceStatus` to a service's document.
pub fn with_status(mut service: Value, status: ServiceStatus) -> Value {
    if let Value::Object(fields) = &mut service {
        fields.insert("ServiceStatus".to_owned(), document::json(&status));
    }
    service
}

fn endpoint(endpoint: &Endpoint, prefix: impl Fn(&Id<Network>) -> Option<u8>) -> Value {
    let mut out = Map::new();
    let spec = endpoint.spec.as_ref().map_or(json!({}), document::json);
    out.insert("Spec".to_owned(), spec);
    if !endpoint.ports.is_empty() {
        out.insert("Ports".to_owned(), json!(endpoint.ports));
    }
    if !endpoint.virtual_ips.is_empty() {
        let addresses: Vec<Value> = endpoint
            .virtual_ips
            .iter()
            .map(|vip| {
                let addr = match prefix(&vip.network_id) {
                    Some(prefix) => format!("{}/{prefix}", vip.addr),
                    None => vip.addr.to_string(),
                };
                json!({ "NetworkID": vip.network_id, "Addr": addr })
            })
            .collect();
        out.insert("VirtualIPs".to_owned(), json!(addresses));
    }
    Value::Object(out)
}

fn update_status(status: &UpdateStatus) -> Value {
    let mut out = Map::new();
    out.insert("State".to_owned(), json!(status.state));
    if let Some(started) = status.started_at {
        out.insert("StartedAt".to_owned(), json!(started));
    }
    if let Some(completed) = status.completed_at {
        out.insert("CompletedAt".to_owned(), json!(completed));
    }
    out.insert("Message".to_owned(), json!(status.message));
    Value::Object(out)
}

/// A spec with every default written out, as `?insertDefaults=true` wants it. Values: swarmkit's
/// defaults for services.
pub fn with_defaults(spec: &ServiceSpec) -> Value {
    let mut out = document::json(spec);
    fill(&mut out, defaults(spec.mode.kind()));
    out
}

fn defaults(mode: ModeKind) -> Value {
    let update = json!({
        "Parallelism": 1,
        "FailureAction": "pause",
        "Monitor": 5_000_000_000_u64,
        "MaxFailureRatio": 0,
        "Order": "stop-first",
    });
    let mut out = json!({
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {
                "StopGracePeriod": 10_000_000_000_u64,
                "DNSConfig": {},
                "Isolation": "default",
            },
            "Resources": { "Limits": {}, "Reservations": {} },
            "RestartPolicy": { "Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0 },
            "Placement": {},
            "ForceUpdate": 0,
            "Runtime": "container",
        },
        "EndpointSpec": { "Mode": "vip" },
    });
    // A job has none of its own, and would be refused with one.
    if !mode.is_job() {
        out["UpdateConfig"] = update.clone();
        out["RollbackConfig"] = update;
    }
    if mode == ModeKind::Replicated {
        out["Mode"] = json!({ "Replicated": { "Replicas": 1 } });
    }
    out
}

/// Takes from `defaults` what `document` lacks or has as null or empty text, at every depth.
fn fill(document: &mut Value, defaults: Value) {
    match (document, defaults) {
        (Value::Object(fields), Value::Object(defaults)) => {
            for (key, default) in defaults {
                fill(fields.entry(key).or_insert(Value::Null), default);
            }
        }
        (slot @ Value::Null, default) => *slot = default,
        (Value::String(text), Value::String(default)) if text.is_empty() => *text = default,
        (_, _) => {}
    }
}
