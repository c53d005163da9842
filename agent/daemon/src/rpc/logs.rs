//! LogBroker and Logs: lines of containers from the nodes that have them to the manager that a user asks.

use std::{collections::BTreeSet, pin::Pin};

use async_trait::async_trait;
use futures_util::{Stream, StreamExt, stream};
use skep_core::{
    api::Node,
    id::Id,
    manager::{logs::Selection, role},
    wire::swarmkit as pb,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    gate::Peer,
    services::swarmkit::{log_broker_server::LogBroker, logs_server::Logs},
};
use crate::manager::{
    Manager,
    log_broker::{Order, Subscription},
};

/// Orders on their way to a node.
const BACKLOG: usize = 4;
/// The longest line that a node may publish, in bytes: containers' lines are cut at 16 KiB.
const MAX_LINE: usize = 64 * 1024;
/// Services and tasks in one selector at most.
const MAX_SELECTED: usize = 256;

/// The two services.
#[derive(Clone)]
pub struct LogsService(pub Manager);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl LogBroker for LogsService {
    type ListenSubscriptionsStream = Answers<pb::SubscriptionMessage>;

    async fn listen_subscriptions(
        &self,
        request: Request<pb::ListenSubscriptionsRequest>,
    ) -> Result<Response<Self::ListenSubscriptionsStream>, Status> {
        let node = Peer::node(&request)?.node_id;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let stopped = self.0.stopped().clone();
        let work = tell_orders(self.0.clone(), node, sender);
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = work => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<pb::PublishLogsMessage>>,
    ) -> Result<Response<pb::PublishLogsResponse>, Status> {
        let node = Peer::node(&request)?.node_id;
        let mut messages = request.into_inner();
        let mut subscription = String::new();
        let taken = take_lines(&self.0, &node, &mut messages, &mut subscription).await;
        // However it ended: nothing more of this node is to come.
        self.0.logs.done(&subscription, &node);
        taken.map(|()| Response::new(pb::PublishLogsResponse {}))
    }
}

/// Says which subscriptions concern a node, and which are over.
async fn tell_orders(
    manager: Manager,
    node: Id<Node>,
    sender: mpsc::Sender<Result<pb::SubscriptionMessage, Status>>,
) {
    let mut changes = manager.logs.watch();
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        changes.borrow_and_update();
        let orders = manager.logs.orders();
        let over: Vec<String> = known
            .iter()
            .filter(|id| !orders.iter().any(|order| order.id == **id))
            .cloned()
            .collect();
        for id in over {
            known.remove(&id);
            let close = pb::SubscriptionMessage {
                id,
                close: true,
                ..pb::SubscriptionMessage::default()
            };
            if sender.send(Ok(close)).await.is_err() {
                return;
            }
        }
        let view = manager.view();
        for order in orders {
            // Who follows a service wants the tasks that are yet to come as well, wherever they will be.
            let concerns =
                order.options.follow || order.selection.sources(&view).contains_key(&node);
            if !concerns || !known.insert(order.id.clone()) {
                continue;
            }
            if sender.send(Ok(message(order))).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

fn message(order: Order) -> pb::SubscriptionMessage {
    pb::SubscriptionMessage {
        id: order.id,
        selector: Some(write_selection(&order.selection)),
        options: Some(order.options),
        close: false,
    }
}

/// A selection for the wire.
#[must_use]
pub fn write_selection(selection: &Selection) -> pb::LogSelector {
    pb::LogSelector {
        service_ids: selection.services.iter().map(Id::to_string).collect(),
        node_ids: Vec::new(),
        task_ids: selection.tasks.iter().map(Id::to_string).collect(),
    }
}

fn read_selection(selector: pb::LogSelector) -> Result<Selection, Status> {
    let invalid = |field: &str, why: &str| Status::invalid_argument(format!("{field}: {why}"));
    if selector.service_ids.len() + selector.task_ids.len() > MAX_SELECTED {
        return Err(invalid("selector", "it has too many entries"));
    }
    if !selector.node_ids.is_empty() {
        return Err(invalid("node_ids", "select services or tasks"));
    }
    let services = selector.service_ids.iter().map(|id| id.parse());
    let tasks = selector.task_ids.iter().map(|id| id.parse());
    Ok(Selection {
        services: services
            .collect::<Result<_, _>>()
            .map_err(|_| invalid("service_ids", "not every one is an id"))?,
        tasks: tasks
            .collect::<Result<_, _>>()
            .map_err(|_| invalid("task_ids", "not every one is an id"))?,
    })
}

/// Takes the lines of one node for one subscription.
async fn take_lines(
    manager: &Manager,
    node: &Id<Node>,
    messages: &mut Streaming<pb::PublishLogsMessage>,
    subscription: &mut String,
) -> Result<(), Status> {
    while let Some(message) = messages.message().await? {
        if subscription.is_empty() {
            *subscription = message.subscription_id.clone();
        }
        if *subscription != message.subscription_id {
            let why = "subscription_id: one stream is for one subscription";
            return Err(Status::invalid_argument(why));
        }
        if message.close {
            return Ok(());
        }
        let Some((selection, lines)) = manager.logs.sink(subscription) else {
            return Err(Status::not_found(format!(
                "subscription {subscription} is over"
            )));
        };
        let view = manager.view();
        for line in message.messages {
            let context = line.context.clone().unwrap_or_default();
            if selection
                .publishable(&view, node, &context.task_id)
                .is_none()
            {
                tracing::warn!(node.id = %node, task.id = context.task_id, "a node publishes lines that are not its own: refused");
                return Err(Status::permission_denied(format!(
                    "task {} is not of this node and subscription",
                    context.task_id
                )));
            }
            if line.data.len() > MAX_LINE {
                let why = format!("data: a line is longer than {MAX_LINE} bytes");
                return Err(Status::invalid_argument(why));
            }
            if lines.send(line).await.is_err() {
                return Err(Status::cancelled("nobody reads any more"));
            }
        }
    }
    Ok(())
}

#[async_trait]
impl Logs for LogsService {
    type SubscribeLogsStream = Answers<pb::SubscribeLogsMessage>;

    async fn subscribe_logs(
        &self,
        request: Request<pb::SubscribeLogsRequest>,
    ) -> Result<Response<Self::SubscribeLogsStream>, Status> {
        // As for every request of a front door: what a manager selects is its users' business, but it must be one.
        let peer = Peer::node(&request)?;
        role::may_take_part(&self.0.view(), &peer.node_id)
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        let message = request.into_inner();
        let selection = read_selection(message.selector.unwrap_or_default())?;
        let options = message.options.unwrap_or_default();
        let subscription = subscribe(&self.0, selection, options).await;
        let subscription = subscription.map_err(|error| Status::unavailable(error.to_string()))?;
        let lines = lines(subscription).map(|line| match line {
            Ok(line) => Ok(pb::SubscribeLogsMessage {
                messages: vec![line],
            }),
            Err(error) => Err(Status::unavailable(error.to_string())),
        });
        Ok(Response::new(Box::pin(lines)))
    }
}

/// Opens a subscription on this manager, which must lead.
///
/// # Errors
/// As [`crate::manager::log_broker::LogBroker::subscribe`].
pub async fn subscribe(
    manager: &Manager,
    selection: Selection,
    options: pb::LogSubscriptionOptions,
) -> Result<Subscription, skep_core::api::ApiError> {
    let id = Id::<Subscription>::draw(&mut manager.ctx().await.rng).to_string();
    manager
        .logs
        .subscribe(manager.raft(), id, selection, options)
}

/// The lines of a subscription as a stream.
pub fn lines(
    subscription: Subscription,
) -> impl Stream<Item = Result<pb::LogMessage, skep_core::api::ApiError>> {
    stream::unfold(Some(subscription), |subscription| async move {
        let mut subscription = subscription?;
        match subscription.next().await {
            Ok(Some(line)) => Some((Ok(line), Some(subscription))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}
