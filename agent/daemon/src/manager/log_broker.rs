//! Subscriptions of logs: what users follow, on its way from the nodes. They live on the leader, with which every node
//! has its session.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use skep_core::{
    api::{ApiError, Node, Task},
    id::Id,
    manager::logs::{Selection, is_there},
    store::View,
    wire::swarmkit as pb,
};
use tokio::sync::{mpsc, watch};

use crate::raft::RaftHandle;

/// Subscriptions at a time; more are refused.
const MAX_SUBSCRIPTIONS: usize = 64;
/// Lines that wait for a user who reads slowly; then the nodes are held back.
const BACKLOG: usize = 64;

/// A subscription as nodes are told of it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its id.
    pub id: String,
    /// Whose lines.
    pub selection: Selection,
    /// Which of them.
    pub options: pb::LogSubscriptionOptions,
}

struct Open {
    order: Order,
    lines: mpsc::Sender<pb::LogMessage>,
    /// Nodes that have not said everything yet, each with one of its tasks.
    awaited: BTreeMap<Id<Node>, Id<Task>>,
}

/// The open subscriptions. Cheap to clone.
#[derive(Clone, Default)]
pub struct LogBroker {
    open: Arc<Mutex<BTreeMap<String, Open>>>,
    changed: Arc<watch::Sender<()>>,
}

impl LogBroker {
    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a subscription on the manager that leads.
    ///
    /// # Errors
    /// `Unavailable` when there are too many, or when this manager does not lead.
    pub fn subscribe(
        &self,
        raft: &RaftHandle,
        id: String,
        selection: Selection,
        options: pb::LogSubscriptionOptions,
    ) -> Result<Subscription, ApiError> {
        let unavailable = |why: String| Err(ApiError::Unavailable(why));
        let Some(term) = raft.leads() else {
            return unavailable("this manager does not lead: try again".to_owned());
        };
        let view = raft.view().unwrap_or_default();
        let awaited = selection.sources(&view);
        let (lines, receiver) = mpsc::channel(BACKLOG);
        let follow = options.follow;
        let order = Order {
            id: id.clone(),
            selection,
            options,
        };
        let mut open = self.open();
        if open.len() >= MAX_SUBSCRIPTIONS {
            return unavailable(format!(
                "{MAX_SUBSCRIPTIONS} logs are read at the same time: end one first"
            ));
        }
        let entry = Open {
            order,
            lines,
            awaited,
        };
        open.insert(id.clone(), entry);
        drop(open);
        self.changed.send_replace(());
        Ok(Subscription {
            broker: self.clone(),
            raft: raft.clone(),
            states: raft.published().subscribe(),
            term,
            id,
            follow,
            lines: receiver,
            told: BTreeSet::new(),
        })
    }

    /// Every open subscription.
    #[must_use]
    pub fn orders(&self) -> Vec<Order> {
        self.open()
            .values()
            .map(|open| open.order.clone())
            .collect()
    }

    /// Changes when [`LogBroker::orders`] may have.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Where the lines of a subscription go, and whose they may be; `None` once it is over.
    #[must_use]
    pub fn sink(&self, id: &str) -> Option<(Selection, mpsc::Sender<pb::LogMessage>)> {
        let open = self.open();
        let found = open.get(id)?;
        Some((found.order.selection.clone(), found.lines.clone()))
    }

    /// A node has published everything that it has for a subscription.
    pub fn done(&self, id: &str, node: &Id<Node>) {
        if let Some(open) = self.open().get_mut(id) {
            open.awaited.remove(node);
        }
        self.changed.send_replace(());
    }

    fn close(&self, id: &str) {
        self.open().remove(id);
        self.changed.send_replace(());
    }

    /// Nodes of a subscription that are still to come, and are not there.
    fn missing(&self, id: &str, view: &View) -> Vec<(Id<Node>, Id<Task>)> {
        let open = self.open();
        let awaited = open.get(id).map(|open| open.awaited.clone());
        let awaited = awaited.unwrap_or_default().into_iter();
        awaited.filter(|(node, _)| !is_there(view, node)).collect()
    }

    /// Whether nothing more is to come.
    fn complete(&self, id: &str) -> bool {
        self.open()
            .get(id)
            .is_none_or(|open| open.awaited.is_empty())
    }
}

/// The lines of a subscription. Dropping it ends it on every node.
pub struct Subscription {
    broker: LogBroker,
    raft: RaftHandle,
    states: watch::Receiver<Option<View>>,
    term: u64,
    id: String,
    follow: bool,
    lines: mpsc::Receiver<pb::LogMessage>,
    /// Nodes of which was said that their part is missing.
    told: BTreeSet<Id<Node>>,
}

impl Subscription {
    /// The next line; `None` when everything was said. The part of a node that is down is told to be missing, in place
    /// of waiting for it or failing.
    ///
    /// # Errors
    /// `Unavailable` when this manager leads no more: another one has the nodes now.
    pub async fn next(&mut self) -> Result<Option<pb::LogMessage>, ApiError> {
        let mut changes = self.broker.watch();
        loop {
            let view = self.states.borrow_and_update().clone().unwrap_or_default();
            if let Some(notice) = self.notice(&view) {
                return Ok(Some(notice));
            }
            if !self.follow && self.broker.complete(&self.id) {
                // What nodes have sent before they were done is here.
                return Ok(self.lines.try_recv().ok());
            }
            tokio::select! {
                biased;
                line = self.lines.recv() => return Ok(line),
                () = self.raft.leadership_changed(Some(self.term)) => {
                    return Err(ApiError::Unavailable(
                        "the leader has changed: ask for the log again".to_owned(),
                    ));
                }
                changed = self.states.changed() => if changed.is_err() { return Ok(None) },
                changed = changes.changed() => if changed.is_err() { return Ok(None) },
            }
        }
    }

    fn notice(&mut self, view: &View) -> Option<pb::LogMessage> {
        for (node, task) in self.broker.missing(&self.id, view) {
            if !self.follow {
                self.broker.done(&self.id, &node);
            }
            if self.told.insert(node.clone()) {
                return Some(missing(view, &node, &task));
            }
        }
        None
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.broker.close(&self.id);
    }
}

/// A line that says that a node's part is missing, as if one of its tasks had written it.
fn missing(view: &View, node: &Id<Node>, task: &Id<Task>) -> pb::LogMessage {
    let description = view.node(node).and_then(|it| it.description.as_ref());
    let name = description.map_or_else(|| node.to_string(), |it| it.hostname.clone());
    let service = view.task(task).map(|task| task.service_id.to_string());
    pb::LogMessage {
        context: Some(pb::LogContext {
            service_id: service.unwrap_or_default(),
            node_id: node.to_string(),
            task_id: task.to_string(),
        }),
        timestamp: None,
        stream: pb::LogStream::Stderr.into(),
        data: format!("skep: node {name} is not ready: its part of the log is missing\n")
            .into_bytes(),
        attrs: Vec::new(),
    }
}
