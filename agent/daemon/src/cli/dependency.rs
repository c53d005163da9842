//! `skep secret` and `skep config`.

use std::io::Read;

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use skep_core::api::dependency::{Kind, MAX_CONFIG, MAX_SECRET};

use super::{
    all_or_first_error, filters, items,
    network::key_values,
    output::{self, Format},
    table::table,
    text,
    transport::{
        CONFIG_CREATE, CONFIG_INSPECT, CONFIG_LIST, CONFIG_REMOVE, Call, Operation, SECRET_CREATE,
        SECRET_INSPECT, SECRET_LIST, SECRET_REMOVE, Transport,
    },
    units,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make one from a file or from standard input
    Create(Create),
    /// List them
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show everything about some; the content of a secret is never shown
    Inspect {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove some; one that a service uses stays
    #[command(visible_alias = "remove")]
    Rm {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name
    name: String,
    /// File with the content; - is standard input
    file: String,
    /// Label, KEY[=VALUE]
    #[arg(short, long)]
    label: Vec<String>,
    /// Plugin that holds the content of a secret; not there yet
    #[arg(short, long)]
    driver: Option<String>,
    /// Language of templates in the content; not there yet
    #[arg(long)]
    template_driver: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only those that match: name=, id=, label=
    #[arg(short, long)]
    filter: Vec<String>,
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to show the list
    #[arg(long, default_value = "table")]
    format: Format,
}

struct Operations {
    create: Operation,
    list: Operation,
    inspect: Operation,
    remove: Operation,
}

fn operations(kind: Kind) -> Operations {
    match kind {
        Kind::Secret => Operations {
            create: SECRET_CREATE,
            list: SECRET_LIST,
            inspect: SECRET_INSPECT,
            remove: SECRET_REMOVE,
        },
        Kind::Config => Operations {
            create: CONFIG_CREATE,
            list: CONFIG_LIST,
            inspect: CONFIG_INSPECT,
            remove: CONFIG_REMOVE,
        },
    }
}

pub(super) async fn run(transport: &dyn Transport, kind: Kind, verb: Verb) -> Result<()> {
    let operations = operations(kind);
    match verb {
        Verb::Create(arguments) => create(transport, kind, operations.create, arguments).await,
        Verb::Ls(arguments) => {
            let call = Call::new(operations.list).with([("filters", filters(&arguments.filter)?)]);
            let found = transport.call(call).await?;
            list(kind, &found, &arguments)
        }
        Verb::Inspect { names } => {
            let mut documents = Vec::new();
            for name in names {
                let call = Call::new(operations.inspect).on(&name);
                documents.push(transport.call(call).await?);
            }
            output::document(&Value::Array(documents))
        }
        Verb::Rm { names } => {
            let mut results = Vec::new();
            for name in names {
                let removed = transport.call(Call::new(operations.remove).on(&name)).await;
                results.push(removed.and_then(|_| output::line(&name)));
            }
            all_or_first_error(results)
        }
    }
}

async fn create(
    transport: &dyn Transport,
    kind: Kind,
    operation: Operation,
    arguments: Create,
) -> Result<()> {
    let limit = match kind {
        Kind::Secret => MAX_SECRET,
        Kind::Config => MAX_CONFIG,
    };
    let content = read(&arguments.file, limit)?;
    if content.is_empty() || content.len() >= limit {
        bail!(
            "{}: {} data must be larger than 0 and less than {limit} bytes",
            arguments.file,
            kind.as_str()
        );
    }
    let mut body = json!({
        "Name": arguments.name,
        "Labels": key_values(&arguments.label),
        "Data": STANDARD.encode(content),
    });
    if let Some(driver) = arguments.driver {
        body["Driver"] = json!({ "Name": driver });
    }
    if let Some(driver) = arguments.template_driver {
        body["Templating"] = json!({ "Name": driver });
    }
    let created = transport.call(Call::new(operation).sending(body)).await?;
    output::line(text(&created, "/ID"))
}

/// What is in a file or comes from standard input, `limit` bytes at most.
fn read(file: &str, limit: usize) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let source: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin().lock()),
        path => Box::new(std::fs::File::open(path).with_context(|| path.to_owned())?),
    };
    let read = source.take(limit as u64).read_to_end(&mut content);
    read.with_context(|| file.to_owned())?;
    Ok(content)
}

fn list(kind: Kind, found: &Value, arguments: &Ls) -> Result<()> {
    if arguments.format == Format::Json {
        return output::document(found);
    }
    let mut found: Vec<&Value> = items(found).collect();
    found.sort_by_key(|one| text(one, "/Spec/Name"));
    if arguments.quiet {
        return found
            .into_iter()
            .try_for_each(|one| output::line(text(one, "/ID")));
    }
    let rows: Vec<Vec<String>> = found.into_iter().map(|one| row(kind, one)).collect();
    let heading: &[&str] = match kind {
        Kind::Secret => &["ID", "NAME", "DRIVER", "CREATED", "UPDATED"],
        Kind::Config => &["ID", "NAME", "CREATED", "UPDATED"],
    };
    output::print(&table(heading, &rows))
}

/// The id is shown in full, as Docker shows it here.
fn row(kind: Kind, one: &Value) -> Vec<String> {
    let cell = |pointer| text(one, pointer).to_owned();
    let age = |pointer| units::age(text(one, pointer));
    let mut row = vec![cell("/ID"), cell("/Spec/Name")];
    if kind == Kind::Secret {
        row.push(cell("/Spec/Driver/Name"));
    }
    row.extend([age("/CreatedAt"), age("/UpdatedAt")]);
    row
}
