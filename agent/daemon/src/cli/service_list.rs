//! `skep service ls`.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    filters, items,
    output::{self, Format},
    short,
    table::table,
    task, text,
    transport::{Call, SERVICE_LIST, Transport},
};

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only those that match: name=, id=, label=, mode=
    #[arg(short, long)]
    filter: Vec<String>,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to show the list
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(super) async fn list(transport: &dyn Transport, arguments: Ls) -> Result<()> {
    let call = Call::new(SERVICE_LIST).with([
        ("filters", filters(&arguments.filter)?),
        ("status", "true".to_owned()),
    ]);
    let services = transport.call(call).await?;
    if arguments.format == Format::Json {
        return output::document(&services);
    }
    let mut services: Vec<&Value> = items(&services).collect();
    services.sort_by_key(|service| text(service, "/Spec/Name"));
    if arguments.quiet {
        return services
            .into_iter()
            .try_for_each(|service| output::line(&short(text(service, "/ID"))));
    }
    let rows: Vec<Vec<String>> = services.into_iter().map(row).collect();
    let heading = ["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"];
    output::print(&table(&heading, &rows))
}

fn row(service: &Value) -> Vec<String> {
    let image = text(service, "/Spec/TaskTemplate/ContainerSpec/Image");
    let ports: Vec<String> = items(&service["Endpoint"]["Ports"])
        .filter(|port| port["PublishMode"] != "host")
        .map(task::published)
        .collect();
    let (mode, replicas) = mode_and_replicas(service);
    vec![
        short(text(service, "/ID")),
        text(service, "/Spec/Name").to_owned(),
        mode.to_owned(),
        replicas,
        task::without_digest(image).to_owned(),
        ports.join(", "),
    ]
}

/// Columns MODE and REPLICAS.
fn mode_and_replicas(service: &Value) -> (&'static str, String) {
    let count = |key: &str| service["ServiceStatus"][key].as_u64().unwrap_or(0);
    let (desired, done) = (count("DesiredTasks"), count("CompletedTasks"));
    let running = format!("{}/{desired}", count("RunningTasks"));
    let mode = &service["Spec"]["Mode"];
    if let Some(job) = mode.get("ReplicatedJob") {
        let total = job["TotalCompletions"].as_u64().unwrap_or(0);
        return (
            "replicated job",
            format!("{running} ({done}/{total} completed)"),
        );
    }
    if mode.get("GlobalJob").is_some() {
        // Those that are desired are those that are not done yet.
        let total = desired + done;
        return (
            "global job",
            format!("{running} ({done}/{total} completed)"),
        );
    }
    if mode.get("Global").is_some() {
        return ("global", running);
    }
    let most = service["Spec"]["TaskTemplate"]["Placement"]["MaxReplicas"].as_u64();
    let limit = match most.unwrap_or(0) {
        0 => String::new(),
        most => format!(" (max {most} per node)"),
    };
    ("replicated", format!("{running}{limit}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_and_counts_are_shown_as_docker_does() {
        let shown = |mode: Value, desired: u64| {
            mode_and_replicas(&json!({
                "Spec": { "Mode": mode, "TaskTemplate": { "Placement": { "MaxReplicas": 2 } } },
                "ServiceStatus": { "RunningTasks": 1, "DesiredTasks": desired, "CompletedTasks": 3 },
            }))
        };
        let job = json!({ "ReplicatedJob": { "MaxConcurrent": 2, "TotalCompletions": 9 } });
        for (mode, wanted) in [
            (
                json!({ "Replicated": { "Replicas": 2 } }),
                ("replicated", "1/2 (max 2 per node)"),
            ),
            (json!({ "Global": {} }), ("global", "1/2")),
            (job, ("replicated job", "1/2 (3/9 completed)")),
            (
                json!({ "GlobalJob": {} }),
                ("global job", "1/2 (3/5 completed)"),
            ),
        ] {
            let (mode, replicas) = shown(mode, 2);
            assert_eq!((mode, replicas.as_str()), wanted);
        }
    }
}
