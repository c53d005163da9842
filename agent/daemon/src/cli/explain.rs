//! `skep explain`: what keeps a service's tasks from running, in full.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    items, output,
    task::Named,
    text,
    transport::{Call, SERVICE_INSPECT, TASK_LIST, Transport},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Name or id of a service
    service: String,
}

pub(super) async fn run(transport: &dyn Transport, arguments: Arguments) -> Result<()> {
    let call = Call::new(SERVICE_INSPECT).on(&arguments.service).with([]);
    let service = transport.call(call).await?;
    let (id, name) = (text(&service, "/ID"), text(&service, "/Spec/Name"));
    let named = Named::of(&service);
    let filters = format!(r#"{{"service":{{"{id}":true}}}}"#);
    let tasks = transport
        .call(Call::new(TASK_LIST).with([("filters", filters)]))
        .await?;
    let lines: Vec<String> = items(&tasks)
        .filter_map(|task| complaint(&named, task))
        .collect();
    if lines.is_empty() {
        return output::line(&format!("every task of {name} runs"));
    }
    lines.iter().try_for_each(|line| output::line(line))
}

/// What is to be said of a task that is wanted and does not run, or that has failed.
fn complaint(service: &Named, task: &Value) -> Option<String> {
    let state = text(task, "/Status/State");
    let desired = text(task, "/DesiredState");
    let wanted = matches!(desired, "running" | "ready" | "complete");
    let failed = matches!(state, "failed" | "rejected" | "orphaned");
    let done = desired == "complete" && state == "complete";
    if state == "running" || done || !(wanted || failed) {
        return None;
    }
    let error = text(task, "/Status/Err");
    let why = if error.is_empty() {
        text(task, "/Status/Message")
    } else {
        error
    };
    Some(format!(
        "{} ({}): {state}: {why}",
        service.slot(task),
        text(task, "/ID")
    ))
}
