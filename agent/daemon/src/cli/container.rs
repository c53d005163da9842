//! `skep ps`: the node's own containers.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    filters, items,
    output::{self, Format},
    short,
    table::table,
    text,
    transport::{CONTAINER_LIST, Call, Transport},
};
use skep_host::clock;

use crate::management::render::container::duration_in_words;

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Only those that match: name=, id=, label=, status=, ancestor=, exited=
    #[arg(short, long)]
    filter: Vec<String>,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show ids and commands in full
    #[arg(long)]
    no_trunc: bool,
    /// How to show the list
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(super) async fn ps(transport: &dyn Transport, arguments: Ps) -> Result<()> {
    let call = Call::new(CONTAINER_LIST).with([
        ("all", arguments.all.to_string()),
        ("filters", filters(&arguments.filter)?),
    ]);
    let containers = transport.call(call).await?;
    if arguments.format == Format::Json {
        return output::document(&containers);
    }
    let id = |container: &Value| {
        let id = text(container, "/Id");
        if arguments.no_trunc {
            id.to_owned()
        } else {
            short(id)
        }
    };
    if arguments.quiet {
        return items(&containers).try_for_each(|container| output::line(&id(container)));
    }
    let rows: Vec<Vec<String>> = items(&containers)
        .map(|container| row(container, id(container), arguments.no_trunc))
        .collect();
    let heading = [
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "PORTS",
        "NAMES",
    ];
    output::print(&table(&heading, &rows))
}

fn row(container: &Value, id: String, whole: bool) -> Vec<String> {
    let command = text(container, "/Command");
    let shown: String = if whole || command.chars().count() <= 20 {
        command.to_owned()
    } else {
        command.chars().take(19).chain(['…']).collect()
    };
    let created = container["Created"].as_i64().unwrap_or(0);
    let age = clock::timestamp().unix_seconds().saturating_sub(created);
    let age = std::time::Duration::from_secs(u64::try_from(age).unwrap_or(0));
    vec![
        id,
        text(container, "/Image").to_owned(),
        format!("\"{shown}\""),
        format!("{} ago", duration_in_words(age)),
        text(container, "/Status").to_owned(),
        String::new(),
        text(container, "/Names/0")
            .trim_start_matches('/')
            .to_owned(),
    ]
}
