//! `skep node`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    capitalized, filters, items,
    output::{self, Format},
    table::table,
    text,
    transport::{Call, INFO, NODE_INSPECT, NODE_LIST, Transport},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the nodes of the swarm
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about nodes
    Inspect {
        /// Names or ids; `self` is the node that answers
        #[arg(required = true)]
        nodes: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only those that match: name=, id=, role=, membership=, label=, node.label=
    #[arg(short, long)]
    filter: Vec<String>,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to show the list
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(super) async fn run(transport: &dyn Transport, verb: Verb) -> Result<()> {
    match verb {
        Verb::Ls(arguments) => list(transport, arguments).await,
        Verb::Inspect { nodes } => inspect(transport, nodes).await,
    }
}

async fn list(transport: &dyn Transport, arguments: Ls) -> Result<()> {
    let call = Call::new(NODE_LIST).with([("filters", filters(&arguments.filter)?)]);
    let nodes = transport.call(call).await?;
    if arguments.format == Format::Json {
        return output::document(&nodes);
    }
    let mut nodes: Vec<&Value> = items(&nodes).collect();
    nodes.sort_by_key(|node| (text(node, "/Description/Hostname"), text(node, "/ID")));
    if arguments.quiet {
        let ids: Vec<&str> = nodes.iter().map(|node| text(node, "/ID")).collect();
        return ids.into_iter().try_for_each(output::line);
    }
    let info = transport.call(Call::new(INFO)).await?;
    let me = text(&info, "/Swarm/NodeID");
    let rows: Vec<Vec<String>> = nodes.into_iter().map(|node| row(node, me)).collect();
    let heading = [
        "ID",
        "HOSTNAME",
        "STATUS",
        "AVAILABILITY",
        "MANAGER STATUS",
        "ENGINE VERSION",
    ];
    output::print(&table(&heading, &rows))
}

fn row(node: &Value, me: &str) -> Vec<String> {
    let id = text(node, "/ID");
    let mark = if id == me { " *" } else { "" };
    let manager = if node["ManagerStatus"]["Leader"] == true {
        "Leader".to_owned()
    } else {
        capitalized(text(node, "/ManagerStatus/Reachability"))
    };
    vec![
        format!("{id}{mark}"),
        text(node, "/Description/Hostname").to_owned(),
        capitalized(text(node, "/Status/State")),
        capitalized(text(node, "/Spec/Availability")),
        manager,
        text(node, "/Description/Engine/EngineVersion").to_owned(),
    ]
}

async fn inspect(transport: &dyn Transport, nodes: Vec<String>) -> Result<()> {
    let mut documents = Vec::new();
    for node in nodes {
        let reference = if node == "self" {
            let info = transport.call(Call::new(INFO)).await?;
            text(&info, "/Swarm/NodeID").to_owned()
        } else {
            node
        };
        let call = Call::new(NODE_INSPECT).on(&reference);
        documents.push(transport.call(call).await?);
    }
    output::document(&Value::Array(documents))
}
