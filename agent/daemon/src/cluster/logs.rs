//! Logs of tasks: from the leader's subscriptions to the manager that a user asks.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use skep_core::{
    api::{ApiError, protobuf},
    manager::logs::Selection,
    wire::swarmkit as pb,
};
use tonic::Status;

use super::{Shared, not_a_manager};
use crate::{
    management::port::{LogLine, LogsRequest, OutputStream, TaskLogLine, TaskLogStream},
    rpc::{
        logs::{lines, subscribe, write_selection},
        services::swarmkit::logs_client::LogsClient,
    },
};

/// The lines of a selection, by the leader if that is another manager.
///
/// # Errors
/// `Unavailable` on a worker or without a leader.
pub(super) async fn read(
    shared: &Shared,
    selection: Selection,
    request: LogsRequest,
) -> Result<TaskLogStream, ApiError> {
    let manager = shared.manager().clone();
    let Some((manager, dialer)) = manager else {
        return Err(not_a_manager(&shared.status.borrow()));
    };
    let options = options(&request);
    if manager.raft().leads().is_some() {
        let subscription = subscribe(&manager, selection, options).await?;
        return Ok(Box::pin(lines(subscription).map_ok(read_line)));
    }
    let unavailable = |why: String| ApiError::Unavailable(why);
    let leader = manager
        .raft()
        .leader()
        .ok_or_else(|| unavailable("there is no leader: try again in a moment".to_owned()))?;
    let channel = dialer
        .dial(&leader.addr)
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    let request = pb::SubscribeLogsRequest {
        selector: Some(write_selection(&selection)),
        options: Some(options),
    };
    let answered = LogsClient::new(channel).subscribe_logs(request).await;
    let messages = answered.map_err(|status| refused(&status))?.into_inner();
    Ok(Box::pin(messages.flat_map(read_message)))
}

fn refused(status: &Status) -> ApiError {
    ApiError::Unavailable(format!("the leader answers: {}", status.message()))
}

fn read_message(
    message: Result<pb::SubscribeLogsMessage, Status>,
) -> impl Stream<Item = Result<TaskLogLine, ApiError>> {
    let lines: Vec<_> = match message {
        Ok(message) => message
            .messages
            .into_iter()
            .map(|line| Ok(read_line(line)))
            .collect(),
        Err(status) => vec![Err(refused(&status))],
    };
    stream::iter(lines)
}

/// Their `tail` is swarmkit's: 0 means all, `-(n + 1)` the last n.
fn options(request: &LogsRequest) -> pb::LogSubscriptionOptions {
    let last = |count: u64| {
        i64::try_from(count)
            .unwrap_or(i64::MAX - 1)
            .saturating_neg()
            - 1
    };
    pb::LogSubscriptionOptions {
        streams: Vec::new(),
        follow: request.follow,
        tail: request.tail.map_or(0, last),
        since: request.since.map(protobuf::timestamp),
    }
}

fn read_line(message: pb::LogMessage) -> TaskLogLine {
    let stream = match message.stream() {
        pb::LogStream::Stderr => OutputStream::Stderr,
        pb::LogStream::Stdout | pb::LogStream::Unknown => OutputStream::Stdout,
    };
    let context = message.context.unwrap_or_default();
    TaskLogLine {
        node: context.node_id,
        service: context.service_id,
        task: context.task_id,
        line: LogLine {
            stream,
            time: protobuf::read_timestamp(message.timestamp.as_ref()),
            line: Bytes::from(message.data),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_written_as_swarmkit_reads_it() {
        let tail = |tail| {
            options(&LogsRequest {
                tail,
                ..LogsRequest::default()
            })
            .tail
        };
        assert_eq!([tail(None), tail(Some(0)), tail(Some(10))], [0, -1, -11]);
        assert!(tail(Some(u64::MAX)) < 0);
    }
}
