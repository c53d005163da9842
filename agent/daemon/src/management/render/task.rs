//! `Task` documents.

use serde_json::{Map, Value, json};
use skep_core::{
    api::{Network, Task, TaskStatus},
    id::Id,
};

use super::object;
use crate::management::document;

/// The document of a task. `network` gives the document of a network ([`super::network::attached`]).
pub fn task(task: &Task, network: impl Fn(&Id<Network>) -> Option<Value>) -> Value {
    let mut out = object(task.id.as_str(), &task.meta);
    out.insert("Labels".to_owned(), json!({}));
    out.insert("Spec".to_owned(), document::json(&task.spec));
    out.insert("ServiceID".to_owned(), json!(task.service_id));
    if task.slot != 0 {
        out.insert("Slot".to_owned(), json!(task.slot));
    }
    if let Some(node) = &task.node_id {
        out.insert("NodeID".to_owned(), json!(node));
    }
    out.insert("Status".to_owned(), status(&task.status));
    out.insert("DesiredState".to_owned(), json!(task.desired_state));
    let attachments: Vec<Value> = task
        .networks
        .iter()
        .map(|attachment| {
            let mut out = Map::new();
            if let Some(network) = network(&attachment.network_id) {
                out.insert("Network".to_owned(), network);
            }
            out.insert("Addresses".to_owned(), json!(attachment.addresses));
            Value::Object(out)
        })
        .collect();
    if !attachments.is_empty() {
        out.insert("NetworksAttachments".to_owned(), json!(attachments));
    }
    if let Some(run) = task.job_iteration {
        out.insert("JobIteration".to_owned(), json!({ "Index": run }));
    }
    Value::Object(out)
}

fn status(status: &TaskStatus) -> Value {
    let mut out = Map::new();
    out.insert("Timestamp".to_owned(), json!(status.timestamp));
    out.insert("State".to_owned(), json!(status.state));
    out.insert("Message".to_owned(), json!(status.message));
    if !status.err.is_empty() {
        out.insert("Err".to_owned(), json!(status.err));
    }
    if let Some(container) = &status.container_status {
        out.insert("ContainerStatus".to_owned(), document::json(container));
    }
    let ports = if status.port_status.is_empty() {
        json!({})
    } else {
        json!({ "Ports": status.port_status })
    };
    out.insert("PortStatus".to_owned(), ports);
    Value::Object(out)
}
