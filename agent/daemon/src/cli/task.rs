//! `skep service ps`: the tasks of services, newest first in each slot.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{
    capitalized, filters, items,
    output::{self, Format},
    service, short,
    table::table,
    text,
    transport::{Call, NODE_LIST, TASK_LIST, Transport},
    units,
};

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Names or ids
    #[arg(required = true)]
    services: Vec<String>,
    /// Only those that match: name=, id=, node=, desired-state=
    #[arg(short, long)]
    filter: Vec<String>,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show ids, images and errors in full
    #[arg(long)]
    no_trunc: bool,
    /// How to show the list
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(super) async fn list(transport: &dyn Transport, arguments: Ps) -> Result<()> {
    let mut names = BTreeMap::new();
    for service in &arguments.services {
        let found = service::inspect(transport, service).await?;
        let id = text(&found, "/ID").to_owned();
        names.insert(id, Named::of(&found));
    }
    let given = filters(&arguments.filter)?;
    let mut wanted: Value = if given.is_empty() {
        json!({})
    } else {
        serde_json::from_str(&given)?
    };
    for id in names.keys() {
        wanted["service"][id] = true.into();
    }
    let call = Call::new(TASK_LIST).with([("filters", wanted.to_string())]);
    let tasks = transport.call(call).await?;
    if arguments.format == Format::Json {
        return output::document(&tasks);
    }
    let nodes = transport.call(Call::new(NODE_LIST).with([])).await?;
    let hosts: BTreeMap<&str, &str> = items(&nodes)
        .map(|node| (text(node, "/ID"), text(node, "/Description/Hostname")))
        .collect();
    let mut tasks: Vec<&Value> = items(&tasks).collect();
    tasks.sort_by(|left, right| {
        let newest = text(right, "/CreatedAt").cmp(text(left, "/CreatedAt"));
        let order = place(&names, left).cmp(&place(&names, right));
        order.then(newest)
    });
    let whole = arguments.no_trunc;
    if arguments.quiet {
        return tasks.into_iter().try_for_each(|task| {
            let id = text(task, "/ID");
            output::line(&if whole { id.to_owned() } else { short(id) })
        });
    }
    let mut seen = HashSet::new();
    let rows: Vec<Vec<String>> = tasks
        .into_iter()
        .map(|task| {
            let slot = place(&names, task);
            let mut name = slot.map_or_else(String::new, |slot| slot.to_string());
            if !seen.insert(name.clone()) {
                name = format!(" \\_ {name}");
            }
            task_row(task, name, &hosts, whole)
        })
        .collect();
    let heading = [
        "ID",
        "NAME",
        "IMAGE",
        "NODE",
        "DESIRED STATE",
        "CURRENT STATE",
        "ERROR",
        "PORTS",
    ];
    output::print(&table(&heading, &rows))
}

/// The slot of a task of one of these services.
fn place<'a>(names: &'a BTreeMap<String, Named>, task: &'a Value) -> Option<Slot<'a>> {
    let service = names.get(text(task, "/ServiceID"))?;
    Some(service.slot(task))
}

/// A service's name, and how its tasks are told apart.
pub(super) struct Named {
    name: String,
    per_node: bool,
}

/// The slot of a task, written `<service>.<number>` or, for services that run once per node,
/// `<service>.<node id>`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot<'a> {
    service: &'a str,
    number: u64,
    node: Option<&'a str>,
}

impl Named {
    /// Of a service's document.
    pub(super) fn of(service: &Value) -> Self {
        let mode = &service["Spec"]["Mode"];
        Self {
            name: text(service, "/Spec/Name").to_owned(),
            per_node: mode.get("Global").is_some() || mode.get("GlobalJob").is_some(),
        }
    }

    /// The slot of one of its tasks.
    pub(super) fn slot<'a>(&'a self, task: &'a Value) -> Slot<'a> {
        Slot {
            service: &self.name,
            number: task["Slot"].as_u64().unwrap_or(0),
            node: self.per_node.then(|| text(task, "/NodeID")),
        }
    }
}

impl fmt::Display for Slot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{}.{node}", self.service),
            None => write!(f, "{}.{}", self.service, self.number),
        }
    }
}

fn task_row(task: &Value, name: String, hosts: &BTreeMap<&str, &str>, whole: bool) -> Vec<String> {
    let id = text(task, "/ID");
    let node = text(task, "/NodeID");
    let image = text(task, "/Spec/ContainerSpec/Image");
    let image = if whole { image } else { without_digest(image) };
    let ports: Vec<String> = items(&task["Status"]["PortStatus"]["Ports"])
        .map(published)
        .collect();
    vec![
        if whole { id.to_owned() } else { short(id) },
        name,
        image.to_owned(),
        (*hosts.get(node).unwrap_or(&node)).to_owned(),
        capitalized(text(task, "/DesiredState")),
        format!(
            "{} {}",
            capitalized(text(task, "/Status/State")),
            units::ago(text(task, "/Status/Timestamp"))
        ),
        quoted_error(text(task, "/Status/Err"), whole),
        ports.join(","),
    ]
}

/// In quotes, and cut to what fits a table.
fn quoted_error(error: &str, whole: bool) -> String {
    match error {
        "" => String::new(),
        error if whole || error.chars().count() <= 30 => format!("\"{error}\""),
        error => {
            let start: String = error.chars().take(29).collect();
            format!("\"{start}…\"")
        }
    }
}

/// A published port, as tables show it.
pub(super) fn published(port: &Value) -> String {
    let number = |key: &str| port[key].as_u64().unwrap_or(0);
    let protocol = text(port, "/Protocol");
    let (published, target) = (number("PublishedPort"), number("TargetPort"));
    format!("*:{published}->{target}/{protocol}")
}

/// An image without the digest that it is pinned to.
pub(super) fn without_digest(image: &str) -> &str {
    image.split('@').next().unwrap_or(image)
}
