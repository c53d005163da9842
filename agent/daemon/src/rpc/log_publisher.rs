//! The node's side of LogBroker: publishes the lines of its own containers to whoever the managers say has asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use skep_core::{
    api::{ApiError, Node, protobuf},
    id::Id,
    wire::swarmkit as pb,
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

use super::{services::swarmkit::log_broker_client::LogBrokerClient, session::End};
use crate::management::port::{LocalContainer, LocalPort, LogLine, LogsRequest, OutputStream};

/// Subscriptions that this node serves at a time, and that wait.
const MAX_ORDERS: usize = 64;
/// Containers that are read for one subscription.
const MAX_CONTAINERS: usize = 512;
/// Messages on their way to a manager that is slow to take them.
const BACKLOG: usize = 4;
/// Lines that are written already and go in one message.
const LINES: usize = 64;
/// How often who follows a service is given the containers that have come since.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Labels that say whose a container is; Docker's executor sets them.
const SERVICE_LABEL: &str = "com.docker.swarm.service.id";
const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// A message of a manager, and the way back to it.
pub struct Order {
    node: Id<Node>,
    message: pb::SubscriptionMessage,
    client: LogBrokerClient<Channel>,
}

/// Where sessions hand orders over, and where [`serve`] takes them from.
#[must_use]
pub fn orders() -> (mpsc::Sender<Order>, mpsc::Receiver<Order>) {
    mpsc::channel(MAX_ORDERS)
}

/// Takes the orders of one session.
pub(super) async fn follow_orders(
    channel: Channel,
    node: Id<Node>,
    orders: &mpsc::Sender<Order>,
) -> End {
    let client = LogBrokerClient::new(channel);
    let request = pb::ListenSubscriptionsRequest {};
    let mut messages = match client.clone().listen_subscriptions(request).await {
        Ok(messages) => messages.into_inner(),
        // A manager without logs is a manager all the same.
        Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
        Err(status) => return status.into(),
    };
    loop {
        match messages.message().await {
            Ok(Some(message)) => {
                let order = Order {
                    node: node.clone(),
                    message,
                    client: client.clone(),
                };
                if orders.send(order).await.is_err() {
                    return End::Stopped;
                }
            }
            Ok(None) => return End::Failed("the manager ended the subscriptions".to_owned()),
            Err(status) => return status.into(),
        }
    }
}

/// Serves orders, each in a task of its own, for as long as there are sessions.
pub async fn serve(mut orders: mpsc::Receiver<Order>, local: Arc<dyn LocalPort>) {
    let mut served: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    while let Some(order) = orders.recv().await {
        served.retain(|_, task| !task.is_finished());
        let id = order.message.id.clone();
        if let Some(before) = served.remove(&id) {
            before.abort();
        }
        if order.message.close {
            continue;
        }
        if served.len() >= MAX_ORDERS {
            tracing::warn!(
                "more than {MAX_ORDERS} logs are read at the same time: one is left out"
            );
            continue;
        }
        served.insert(id, tokio::spawn(publish(order, Arc::clone(&local))));
    }
}

async fn publish(order: Order, local: Arc<dyn LocalPort>) {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let mut client = order.client.clone();
    let call = client.publish_logs(ReceiverStream::new(receiver));
    let (answer, ()) = tokio::join!(call, feed(&order, &*local, sender));
    if let Err(status) = answer {
        tracing::debug!(subscription = order.message.id, %status, "a subscription of logs has ended");
    }
}

type Sender = mpsc::Sender<pb::PublishLogsMessage>;

async fn feed(order: &Order, local: &dyn LocalPort, sender: Sender) {
    let options = order.message.options.clone().unwrap_or_default();
    let mut wanted = request(&options);
    let mut seen = BTreeSet::new();
    let mut readers = JoinSet::new();
    loop {
        let containers = local.containers().await.unwrap_or_default();
        for container in containers {
            if seen.len() < MAX_CONTAINERS
                && is_wanted(&container, order)
                && seen.insert(container.id.clone())
            {
                match local.logs(&container.id, wanted.clone()).await {
                    Ok(lines) => {
                        let source = Source::of(&container, order, &options);
                        readers.spawn(source.send(lines, sender.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(container = container.id, %error, "a log cannot be read: {error}")
                    }
                }
            }
        }
        if !options.follow {
            break;
        }
        // Of what comes from now on nothing was said before.
        wanted.tail = None;
        tokio::select! {
            () = sleep(LOOK_AGAIN) => {}
            () = sender.closed() => return,
        }
    }
    while readers.join_next().await.is_some() {}
    let close = pb::PublishLogsMessage {
        subscription_id: order.message.id.clone(),
        messages: Vec::new(),
        close: true,
    };
    // Who no longer listens does not need to hear the end.
    let _ = sender.send(close).await;
}

fn is_wanted(container: &LocalContainer, order: &Order) -> bool {
    let selector = order.message.selector.clone().unwrap_or_default();
    let has = |ids: &[String], label: &str| {
        let is = container.labels.get(label);
        is.is_some_and(|is| ids.contains(is))
    };
    has(&selector.service_ids, SERVICE_LABEL)
        || has(&selector.task_ids, TASK_LABEL)
        || (selector
            .node_ids
            .iter()
            .any(|id| *id == order.node.as_str())
            && container.labels.contains_key(TASK_LABEL))
}

/// Which lines the options ask for. Their `tail` is swarmkit's: 0 means all, `-(n + 1)` the last n.
fn request(options: &pb::LogSubscriptionOptions) -> LogsRequest {
    let since = options.since.as_ref();
    let since = since.map(|_| protobuf::read_timestamp(since));
    LogsRequest {
        tail: (options.tail < 0).then(|| options.tail.unsigned_abs() - 1),
        follow: options.follow,
        since,
        until: None,
    }
}

/// What every line of a container has in common.
struct Source {
    subscription: String,
    context: pb::LogContext,
    streams: Vec<i32>,
}

impl Source {
    fn of(container: &LocalContainer, order: &Order, options: &pb::LogSubscriptionOptions) -> Self {
        let label = |label: &str| container.labels.get(label).cloned().unwrap_or_default();
        Self {
            subscription: order.message.id.clone(),
            context: pb::LogContext {
                service_id: label(SERVICE_LABEL),
                node_id: order.node.to_string(),
                task_id: label(TASK_LABEL),
            },
            streams: options.streams.clone(),
        }
    }

    async fn send(
        self,
        lines: impl futures_util::Stream<Item = Result<LogLine, ApiError>> + Unpin,
        sender: Sender,
    ) {
        // Lines that are there already go together.
        let mut lines = lines.ready_chunks(LINES);
        while let Some(lines) = lines.next().await {
            let lines = lines.into_iter().filter_map(Result::ok);
            let message = pb::PublishLogsMessage {
                subscription_id: self.subscription.clone(),
                messages: lines.filter_map(|line| self.message(line)).collect(),
                close: false,
            };
            if !message.messages.is_empty() && sender.send(message).await.is_err() {
                return;
            }
        }
    }

    fn message(&self, line: LogLine) -> Option<pb::LogMessage> {
        let stream: i32 = match line.stream {
            OutputStream::Stdout => pb::LogStream::Stdout.into(),
            OutputStream::Stderr => pb::LogStream::Stderr.into(),
        };
        (self.streams.is_empty() || self.streams.contains(&stream)).then(|| pb::LogMessage {
            context: Some(self.context.clone()),
            timestamp: Some(protobuf::timestamp(line.time)),
            stream,
            data: line.line.to_vec(),
            attrs: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_counted_as_swarmkit_does() {
        let tail = |tail| {
            let options = pb::LogSubscriptionOptions {
                tail,
                ..pb::LogSubscriptionOptions::default()
            };
            request(&options).tail
        };
        assert_eq!([tail(0), tail(-1), tail(-11)], [None, Some(0), Some(10)]);
        assert_eq!(tail(i64::MIN), Some(i64::MIN.unsigned_abs() - 1));
    }
}
