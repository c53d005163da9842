//! `Node` documents.

use serde_json::{Map, Value, json};
use skep_core::api::{ManagerStatus, Node, NodeDescription, NodeStatus};

use super::object;
use crate::management::document;

/// The document of a node; `tls_info` is the cluster's ([`super::swarm::tls_info`]).
pub fn node(node: &Node, tls_info: &Value) -> Value {
    let mut out = object(node.id.as_str(), &node.meta);
    out.insert("Spec".to_owned(), document::json(&node.spec));
    if let Some(description) = &node.description {
        out.insert("Description".to_owned(), describe(description, tls_info));
    }
    out.insert("Status".to_owned(), status(&node.status));
    if let Some(manager) = &node.manager_status {
        out.insert("ManagerStatus".to_owned(), manager_status(manager));
    }
    Value::Object(out)
}

fn describe(description: &NodeDescription, tls_info: &Value) -> Value {
    let plugins: Vec<Value> = description
        .engine
        .plugins
        .iter()
        .map(|(kind, name)| json!({ "Type": kind, "Name": name }))
        .collect();
    let mut engine = Map::new();
    engine.insert(
        "EngineVersion".to_owned(),
        json!(description.engine.engine_version),
    );
    if !description.engine.labels.is_empty() {
        engine.insert("Labels".to_owned(), json!(description.engine.labels));
    }
    engine.insert("Plugins".to_owned(), json!(plugins));
    json!({
        "Hostname": description.hostname,
        "Platform": description.platform,
        "Resources": description.resources,
        "Engine": engine,
        "TLSInfo": tls_info,
    })
}

fn status(status: &NodeStatus) -> Value {
    let mut out = Map::new();
    out.insert("State".to_owned(), json!(status.state));
    if !status.message.is_empty() {
        out.insert("Message".to_owned(), json!(status.message));
    }
    if let Some(addr) = status.addr {
        out.insert("Addr".to_owned(), json!(addr));
    }
    Value::Object(out)
}

fn manager_status(manager: &ManagerStatus) -> Value {
    let mut out = Map::new();
    if manager.leader {
        out.insert("Leader".to_owned(), json!(true));
    }
    out.insert("Reachability".to_owned(), json!(manager.reachability));
    out.insert("Addr".to_owned(), json!(manager.addr));
    Value::Object(out)
}
