//! `skep logs` of a container of the node, and `skep service logs` of tasks wherever they run.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use skep_host::clock;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    items, output, service, short,
    task::Named,
    text,
    transport::{
        CONTAINER_LOGS, Call, NODE_LIST, Operation, Refused, SERVICE_LOGS, TASK_LIST, TASK_LOGS,
        Transport,
    },
    units,
};
use crate::management::port::OutputStream;

/// Most bytes of a line that a frame may have.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// Which lines, of whatever log.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines, of a service those of each task
    #[arg(short = 'n', long, default_value = "all")]
    tail: String,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Only lines of this last while, such as 10m
    #[arg(long, value_parser = units::duration)]
    since: Option<std::time::Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Name or id of a container
    container: String,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub(super) struct ServiceLogs {
    /// Name or id of a service or of a task
    reference: String,
    #[command(flatten)]
    which: Which,
    /// Show the lines as they were written, without whose they are
    #[arg(long)]
    raw: bool,
    /// Show ids in place of names
    #[arg(long)]
    no_resolve: bool,
    /// Show ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Leave the tasks' ids out
    #[arg(long)]
    no_task_ids: bool,
}

impl Which {
    fn call(&self, operation: Operation, reference: &str, details: bool) -> Call {
        let since = self.since.map_or_else(String::new, |length| {
            let now = clock::timestamp().unix_seconds();
            let length = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
            now.saturating_sub(length).to_string()
        });
        Call::new(operation).on(reference).with([
            ("stdout", "1".to_owned()),
            ("stderr", "1".to_owned()),
            ("follow", self.follow.to_string()),
            ("tail", self.tail.clone()),
            ("timestamps", self.timestamps.to_string()),
            ("details", details.to_string()),
            ("since", since),
        ])
    }
}

pub(super) async fn of_container(transport: &dyn Transport, arguments: Logs) -> Result<()> {
    let call = arguments
        .which
        .call(CONTAINER_LOGS, &arguments.container, false);
    let mut stream = transport.open(call).await?;
    while let Some((kind, line)) = read_frame(&mut stream).await? {
        output::bytes(kind, &line)?;
    }
    Ok(())
}

pub(super) async fn of_service(transport: &dyn Transport, arguments: ServiceLogs) -> Result<()> {
    let reference = &arguments.reference;
    let inspected = service::inspect(transport, reference).await;
    let operation = match &inspected {
        Ok(_) => SERVICE_LOGS,
        Err(error)
            if error
                .downcast_ref::<Refused>()
                .is_some_and(|it| it.not_found) =>
        {
            TASK_LOGS
        }
        Err(_) => return inspected.map(drop),
    };
    let call = arguments.which.call(operation, reference, !arguments.raw);
    let mut stream = transport.open(call).await?;
    let mut names = Names::default();
    while let Some((kind, line)) = read_frame(&mut stream).await? {
        if arguments.raw {
            output::bytes(kind, &line)?;
            continue;
        }
        let (time, context, rest) = split(&line, arguments.which.timestamps)?;
        let mut shown = time.to_owned();
        shown += &names.of(transport, context, &arguments).await?;
        shown += "    | ";
        output::bytes(kind, &[shown.as_bytes(), rest].concat())?;
    }
    Ok(())
}

/// The time with its space if there is one, the details, and what was written.
fn split(line: &[u8], timestamps: bool) -> Result<(&str, &str, &[u8])> {
    let space = |from: usize| {
        let found = line.iter().skip(from).position(|byte| *byte == b' ');
        found
            .map(|at| from + at + 1)
            .context("the node sent a log line that does not say whose it is")
    };
    let time = if timestamps { space(0)? } else { 0 };
    let context = space(time)?;
    Ok((
        std::str::from_utf8(&line[..time])?,
        std::str::from_utf8(&line[time..context - 1])?,
        &line[context..],
    ))
}

/// What tasks and nodes are called; asked for again when one is new.
#[derive(Default)]
struct Names {
    tasks: BTreeMap<String, String>,
    nodes: BTreeMap<String, String>,
}

impl Names {
    async fn of(
        &mut self,
        transport: &dyn Transport,
        context: &str,
        arguments: &ServiceLogs,
    ) -> Result<String> {
        let fields: BTreeMap<&str, &str> = context
            .split(',')
            .filter_map(|field| field.split_once('='))
            .collect();
        let field = |key: &str| fields.get(key).copied().unwrap_or_default();
        let (node, task) = (
            field("com.docker.swarm.node.id"),
            field("com.docker.swarm.task.id"),
        );
        let id = |id: &str| match arguments.no_trunc {
            true => id.to_owned(),
            false => short(id),
        };
        if arguments.no_resolve {
            return Ok(format!("{}@{}", id(task), id(node)));
        }
        if !self.tasks.contains_key(task) {
            self.look(transport, field("com.docker.swarm.service.id"))
                .await?;
        }
        // Its history may have been cut meanwhile.
        let name = self
            .tasks
            .entry(task.to_owned())
            .or_insert_with(|| id(task));
        let node = self.nodes.get(node).cloned().unwrap_or_else(|| id(node));
        Ok(match arguments.no_task_ids {
            true => format!("{name}@{node}"),
            false => format!("{name}.{}@{node}", id(task)),
        })
    }

    async fn look(&mut self, transport: &dyn Transport, service: &str) -> Result<()> {
        let inspected = service::inspect(transport, service).await?;
        let named = Named::of(&inspected);
        let filters = json!({ "service": { service: true } }).to_string();
        let tasks = transport
            .call(Call::new(TASK_LIST).with([("filters", filters)]))
            .await?;
        for task in items(&tasks) {
            let name = named.slot(task).to_string();
            self.tasks.insert(text(task, "/ID").to_owned(), name);
        }
        let nodes = transport.call(Call::new(NODE_LIST).with([])).await?;
        for node in items(&nodes) {
            let name = text(node, "/Description/Hostname").to_owned();
            self.nodes.insert(text(node, "/ID").to_owned(), name);
        }
        Ok(())
    }
}

/// The next of Docker's multiplexed frames: the output that it is of, and its bytes.
async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
) -> Result<Option<(OutputStream, Vec<u8>)>> {
    let mut head = [0_u8; 8];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
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
    let kind = match kind {
        2 => OutputStream::Stderr,
        _ => OutputStream::Stdout,
    };
    Ok(Some((kind, line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whose_it_is() {
        let (time, context, rest) =
            split(b"2026-01-01T00:00:00Z a=b,c=d GET / 200\n", true).unwrap();
        assert_eq!((time, context), ("2026-01-01T00:00:00Z ", "a=b,c=d"));
        assert_eq!(rest, b"GET / 200\n");
        let (time, context, rest) = split(b"a=b \xff\n", false).unwrap();
        assert_eq!((time, context, rest), ("", "a=b", &b"\xff\n"[..]));
        assert!(split(b"nothing", false).is_err());
        assert!(split(b"\xff x", false).is_err());
    }
}
