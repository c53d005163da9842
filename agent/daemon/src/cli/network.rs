//! `skep network`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    all_or_first_error, filters, items,
    output::{self, Format},
    short,
    table::table,
    text,
    transport::{Call, NETWORK_CREATE, NETWORK_INSPECT, NETWORK_LIST, NETWORK_REMOVE, Transport},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a network
    Create(Create),
    /// List the networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about networks
    Inspect {
        /// Names or ids
        #[arg(required = true)]
        networks: Vec<String>,
        /// With peers, services and tasks
        #[arg(short, long)]
        verbose: bool,
    },
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        networks: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name of the network
    name: String,
    /// Driver; overlay is the one of a swarm
    #[arg(short, long, default_value = "overlay")]
    driver: String,
    /// Subnet, a.b.c.d/n
    #[arg(long)]
    subnet: Vec<String>,
    /// Gateway of the subnet
    #[arg(long)]
    gateway: Option<String>,
    /// Part of the subnet from which addresses are given
    #[arg(long)]
    ip_range: Option<String>,
    /// No way to the outside
    #[arg(long)]
    internal: bool,
    /// Containers that are no tasks may join
    #[arg(long)]
    attachable: bool,
    /// Driver option, KEY[=VALUE]
    #[arg(short, long)]
    opt: Vec<String>,
    /// Label, KEY[=VALUE]
    #[arg(long)]
    label: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only those that match: name=, id=, driver=, scope=, label=, type=, dangling=
    #[arg(short, long)]
    filter: Vec<String>,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show ids in full
    #[arg(long)]
    no_trunc: bool,
    /// How to show the list
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(super) async fn run(transport: &dyn Transport, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(arguments) => create(transport, arguments).await,
        Verb::Ls(arguments) => list(transport, arguments).await,
        Verb::Inspect { networks, verbose } => {
            let mut documents = Vec::new();
            for network in networks {
                let call = Call::new(NETWORK_INSPECT)
                    .on(&network)
                    .with([("verbose", verbose.to_string())]);
                documents.push(transport.call(call).await?);
            }
            output::document(&Value::Array(documents))
        }
        Verb::Rm { networks } => {
            let mut results = Vec::new();
            for network in networks {
                let removed = transport.call(Call::new(NETWORK_REMOVE).on(&network)).await;
                results.push(removed.and_then(|_| output::line(&network)));
            }
            all_or_first_error(results)
        }
    }
}

async fn create(transport: &dyn Transport, arguments: Create) -> Result<()> {
    let single = arguments.subnet.len() <= 1;
    if (arguments.gateway.is_some() || arguments.ip_range.is_some())
        && (!single || arguments.subnet.is_empty())
    {
        bail!("--gateway and --ip-range belong to one --subnet: give exactly one");
    }
    let config: Vec<Value> = arguments
        .subnet
        .iter()
        .map(|subnet| {
            let mut entry = json!({ "Subnet": subnet });
            if let Some(gateway) = &arguments.gateway {
                entry["Gateway"] = gateway.as_str().into();
            }
            if let Some(range) = &arguments.ip_range {
                entry["IPRange"] = range.as_str().into();
            }
            entry
        })
        .collect();
    let body = json!({
        "Name": arguments.name,
        "Driver": arguments.driver,
        "IPAM": { "Driver": "default", "Config": config },
        "Internal": arguments.internal,
        "Attachable": arguments.attachable,
        "Options": key_values(&arguments.opt),
        "Labels": key_values(&arguments.label),
    });
    let created = transport
        .call(Call::new(NETWORK_CREATE).sending(body))
        .await?;
    output::line(text(&created, "/Id"))
}

/// `KEY[=VALUE]` texts.
pub(super) fn key_values(given: &[String]) -> BTreeMap<String, String> {
    given
        .iter()
        .map(|text| text.split_once('=').unwrap_or((text, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

async fn list(transport: &dyn Transport, arguments: Ls) -> Result<()> {
    let call = Call::new(NETWORK_LIST).with([("filters", filters(&arguments.filter)?)]);
    let networks = transport.call(call).await?;
    if arguments.format == Format::Json {
        return output::document(&networks);
    }
    let mut networks: Vec<&Value> = items(&networks).collect();
    networks.sort_by_key(|network| text(network, "/Name"));
    let id = |network: &Value| {
        let id = text(network, "/Id");
        if arguments.no_trunc {
            id.to_owned()
        } else {
            short(id)
        }
    };
    if arguments.quiet {
        return networks
            .into_iter()
            .try_for_each(|network| output::line(&id(network)));
    }
    let rows: Vec<Vec<String>> = networks
        .into_iter()
        .map(|network| {
            let cell = |pointer| text(network, pointer).to_owned();
            vec![id(network), cell("/Name"), cell("/Driver"), cell("/Scope")]
        })
        .collect();
    output::print(&table(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows))
}
