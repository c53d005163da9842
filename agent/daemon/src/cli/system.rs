//! `skep info` and `skep version`.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    capitalized, items,
    output::{self, Format},
    text,
    transport::{Call, INFO, Transport, VERSION},
    units,
};

#[derive(Debug, Args)]
pub(super) struct Info {
    /// How to show it
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Version {
    /// How to show it
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(super) async fn version(transport: &dyn Transport, arguments: Version) -> Result<()> {
    let server = transport.call(Call::new(VERSION)).await?;
    let mine = crate::management::system::VERSION;
    if arguments.format == Format::Json {
        let document = serde_json::json!({ "Client": { "Version": mine }, "Server": server });
        return output::document(&document);
    }
    output::print(&format!(
        "Client:\n Version:           {mine}\n\n\
         Server: {}\n Engine:\n  Version:          {}\n  API version:      {} (minimum version {})\n  \
         OS/Arch:          {}/{}\n  Kernel:           {}\n",
        text(&server, "/Platform/Name"),
        text(&server, "/Version"),
        text(&server, "/ApiVersion"),
        text(&server, "/MinAPIVersion"),
        text(&server, "/Os"),
        text(&server, "/Arch"),
        text(&server, "/KernelVersion"),
    ))
}

pub(super) async fn info(transport: &dyn Transport, arguments: Info) -> Result<()> {
    let info = transport.call(Call::new(INFO)).await?;
    if arguments.format == Format::Json {
        return output::document(&info);
    }
    let number = |key: &str| info[key].as_u64().unwrap_or(0);
    let mut lines = vec![
        format!("Name: {}", text(&info, "/Name")),
        format!("ID: {}", text(&info, "/ID")),
        format!("Server Version: {}", text(&info, "/ServerVersion")),
        format!("Operating System: {}", text(&info, "/OperatingSystem")),
        format!("Kernel Version: {}", text(&info, "/KernelVersion")),
        format!("Architecture: {}", text(&info, "/Architecture")),
        format!("CPUs: {}", number("NCPU")),
        format!("Total Memory: {}", units::human_bytes(number("MemTotal"))),
        format!("Containers: {}", number("Containers")),
        format!(" Running: {}", number("ContainersRunning")),
        format!(" Stopped: {}", number("ContainersStopped")),
        format!("Images: {}", number("Images")),
    ];
    lines.extend(swarm_lines(&info["Swarm"]));
    lines.iter().try_for_each(|line| output::line(line))
}

/// The swarm part, as Docker's client words it.
fn swarm_lines(swarm: &Value) -> Vec<String> {
    let state = text(swarm, "/LocalNodeState");
    let mut lines = vec![format!("Swarm: {state}")];
    let error = text(swarm, "/Error");
    if !error.is_empty() {
        lines.push(format!(" Error: {error}"));
    }
    if state == "inactive" {
        return lines;
    }
    let manager = swarm["ControlAvailable"] == true;
    lines.push(format!(" NodeID: {}", text(swarm, "/NodeID")));
    lines.push(format!(" Is Manager: {manager}"));
    if manager {
        let cluster = &swarm["Cluster"];
        let pools: Vec<&str> = items(&cluster["DefaultAddrPool"])
            .filter_map(Value::as_str)
            .collect();
        let seconds = |pointer: &str| {
            let nanos = cluster.pointer(pointer).and_then(Value::as_u64);
            std::time::Duration::from_nanos(nanos.unwrap_or(0))
        };
        let words = crate::management::render::container::duration_in_words;
        lines.extend([
            format!(" ClusterID: {}", text(cluster, "/ID")),
            format!(" Managers: {}", swarm["Managers"]),
            format!(" Nodes: {}", swarm["Nodes"]),
            format!(" Default Address Pool: {}", pools.join(" ")),
            format!(" SubnetSize: {}", cluster["SubnetSize"]),
            format!(" Data Path Port: {}", cluster["DataPathPort"]),
            format!(
                " Task History Retention Limit: {}",
                cluster["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"]
            ),
            format!(
                " Heartbeat Period: {}",
                words(seconds("/Spec/Dispatcher/HeartbeatPeriod"))
            ),
            format!(
                " Certificate Expiry: {}",
                words(seconds("/Spec/CAConfig/NodeCertExpiry"))
            ),
        ]);
    }
    lines.push(format!(" Node Address: {}", text(swarm, "/NodeAddr")));
    let managers = items(&swarm["RemoteManagers"]).map(|manager| text(manager, "/Addr"));
    let managers: Vec<String> = managers.map(|addr| format!("  {addr}")).collect();
    if !managers.is_empty() {
        lines.push(" Manager Addresses:".to_owned());
        lines.extend(managers);
    }
    if state != "active" {
        lines.push(format!(" State: {}", capitalized(state)));
    }
    lines
}
