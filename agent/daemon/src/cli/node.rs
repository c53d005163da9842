//! `skep node`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    all_or_first_error, capitalized, filters, items,
    network::key_values,
    output::{self, Format},
    swarm::{Availability, Role},
    table::table,
    text,
    transport::{Call, INFO, NODE_INSPECT, NODE_LIST, NODE_REMOVE, NODE_UPDATE, Transport},
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
    /// Change the role, the availability or the labels of a node
    Update(Update),
    /// Make nodes managers
    Promote {
        /// Names or ids
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make managers workers
    Demote {
        /// Names or ids
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Remove nodes that have left or are down
    #[command(visible_alias = "remove")]
    Rm {
        /// Also nodes that are up
        #[arg(short, long)]
        force: bool,
        /// Names or ids
        #[arg(required = true)]
        nodes: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Whether it takes tasks; with drain it gives up those that it has
    #[arg(long)]
    availability: Option<Availability>,
    /// What it is in the swarm
    #[arg(long)]
    role: Option<Role>,
    /// Set labels: KEY=VALUE
    #[arg(long)]
    label_add: Vec<String>,
    /// Take labels away
    #[arg(long)]
    label_rm: Vec<String>,
    /// Name or id
    node: String,
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
        Verb::Update(arguments) => update(transport, arguments).await,
        Verb::Promote { nodes } => set_roles(transport, nodes, Role::Manager).await,
        Verb::Demote { nodes } => set_roles(transport, nodes, Role::Worker).await,
        Verb::Rm { force, nodes } => {
            let mut results = Vec::new();
            for node in nodes {
                let call = Call::new(NODE_REMOVE)
                    .on(&node)
                    .with([("force", force.to_string())]);
                let removed = transport.call(call).await;
                results.push(removed.and_then(|_| output::line(&node)));
            }
            all_or_first_error(results)
        }
    }
}

async fn update(transport: &dyn Transport, arguments: Update) -> Result<()> {
    change(transport, &arguments.node, |spec| {
        if let Some(availability) = arguments.availability {
            spec["Availability"] = availability.word().into();
        }
        if let Some(role) = arguments.role {
            spec["Role"] = role.word().into();
        }
        if !spec["Labels"].is_object() {
            spec["Labels"] = json!({});
        }
        if let Some(labels) = spec["Labels"].as_object_mut() {
            labels.retain(|key, _| !arguments.label_rm.contains(key));
            let added = key_values(&arguments.label_add);
            labels.extend(added.into_iter().map(|(key, value)| (key, value.into())));
        }
        true
    })
    .await?;
    output::line(&arguments.node)
}

/// Each node by itself: what one of them is refused for does not keep the others from it.
async fn set_roles(transport: &dyn Transport, nodes: Vec<String>, role: Role) -> Result<()> {
    let mut results = Vec::new();
    for node in nodes {
        let changed = change(transport, &node, |spec| {
            let differs = spec["Role"] != role.word();
            spec["Role"] = role.word().into();
            differs
        })
        .await;
        results.push(changed.and_then(|changed| {
            output::line(&match (changed, role) {
                (true, Role::Manager) => format!("Node {node} promoted to a manager in the swarm."),
                (true, Role::Worker) => format!("Manager {node} demoted in the swarm."),
                (false, role) => format!("Node {node} is already a {}.", role.word()),
            })
        }));
    }
    all_or_first_error(results)
}

/// Changes the spec of a node as it is now, unless `edit` finds nothing to change. Whether it was changed.
async fn change(
    transport: &dyn Transport,
    node: &str,
    edit: impl FnOnce(&mut Value) -> bool,
) -> Result<bool> {
    let mut found = transport.call(Call::new(NODE_INSPECT).on(node)).await?;
    let version = found["Version"]["Index"].to_string();
    let mut spec = found["Spec"].take();
    if !edit(&mut spec) {
        return Ok(false);
    }
    let call = Call::new(NODE_UPDATE)
        .on(text(&found, "/ID"))
        .with([("version", version)])
        .sending(spec);
    transport.call(call).await?;
    Ok(true)
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
