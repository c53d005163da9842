//! `skep ps` and `skep logs`: the node's own containers.

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    filters, items,
    output::{self, Format},
    short,
    table::table,
    text,
    transport::{CONTAINER_LIST, CONTAINER_LOGS, Call, Transport},
    units,
};
use skep_host::clock;

use crate::management::{port::OutputStream, render::container::duration_in_words};

/// Most bytes of a line that a frame may have.
const MAX_LINE: usize = 4 * 1024 * 1024;

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

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Name or id of a container
    container: String,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, default_value = "all")]
    tail: String,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Only lines of this last while, such as 10m
    #[arg(long, value_parser = units::duration)]
    since: Option<std::time::Duration>,
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

pub(super) async fn logs(transport: &dyn Transport, arguments: Logs) -> Result<()> {
    let since = match arguments.since {
        Some(while_) => {
            let now = clock::timestamp().unix_seconds();
            let length = i64::try_from(while_.as_secs()).unwrap_or(i64::MAX);
            now.saturating_sub(length).to_string()
        }
        None => String::new(),
    };
    let call = Call::new(CONTAINER_LOGS).on(&arguments.container).with([
        ("stdout", "1".to_owned()),
        ("stderr", "1".to_owned()),
        ("follow", arguments.follow.to_string()),
        ("tail", arguments.tail),
        ("timestamps", arguments.timestamps.to_string()),
        ("since", since),
    ]);
    let mut stream = transport.open(call).await?;
    copy_frames(&mut stream).await
}

/// Writes Docker's multiplexed frames to the outputs that they name.
async fn copy_frames(stream: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<()> {
    loop {
        let mut head = [0_u8; 8];
        match stream.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context("the log was cut off"),
        }
        let [kind, _, _, _, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        if length > MAX_LINE {
            bail!("the node sent a log line of {length} bytes");
        }
        let mut line = vec![0; length];
        stream
            .read_exact(&mut line)
            .await
            .context("the log was cut off")?;
        let stream = if kind == 2 {
            OutputStream::Stderr
        } else {
            OutputStream::Stdout
        };
        output::bytes(stream, &line)?;
    }
}
