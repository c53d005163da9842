//! What nodes report of their tasks.

use super::Refused;
use crate::{
    api::{Node, TaskState, TaskStatus},
    id::Id,
    store::{Change, View},
    time::Timestamp,
};

/// The longest text of a report that is kept.
const MAX_TEXT: usize = 4096;

/// The changes that a node's reports amount to. They get the leader's time, so that all decisions over
/// times rest on one clock. Reports of tasks that are gone, and such that say nothing new, are left out.
///
/// # Errors
/// When a task belongs to another node or a status is none that a node gives: then nothing of the
/// call is taken.
pub fn reports(
    view: &View,
    node: &Id<Node>,
    reports: Vec<(String, TaskStatus)>,
    now: Timestamp,
) -> Result<Vec<Change>, Refused> {
    let mut changes = Vec::new();
    for (task, status) in reports {
        // An id that is none names no task of ours.
        let known = task.parse().ok().and_then(|id| view.task(&id));
        let Some(known) = known else {
            continue;
        };
        // A task of a global service has its node before it is sent there.
        if known.node_id.as_ref() != Some(node) || !known.is_assigned() {
            return Err(Refused::ForeignTask {
                task,
                node: node.clone(),
            });
        }
        check(&task, &status)?;
        let status = cleaned(status, now);
        let news = TaskStatus {
            timestamp: known.status.timestamp,
            ..status.clone()
        } != known.status;
        if news && status.state >= known.status.state {
            changes.push(Change::TaskStatus {
                task: known.id.clone(),
                node: node.clone(),
                status,
            });
        }
    }
    Ok(changes)
}

fn check(task: &str, status: &TaskStatus) -> Result<(), Refused> {
    let refuse = |why: String| {
        Err(Refused::InvalidReport {
            task: task.to_owned(),
            why,
        })
    };
    match status.state {
        TaskState::Accepted
        | TaskState::Preparing
        | TaskState::Ready
        | TaskState::Starting
        | TaskState::Running
        | TaskState::Complete
        | TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected
        // An unchanged status may be reported again.
        | TaskState::Assigned => {}
        TaskState::New | TaskState::Pending | TaskState::Remove | TaskState::Orphaned => {
            return refuse(format!("a node does not give state {:?}", status.state));
        }
    }
    let Some(container) = &status.container_status else {
        return Ok(());
    };
    let id = &container.container_id;
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_id = id.len() == 64 && id.bytes().all(hex);
    if !(id.is_empty() || is_id) {
        return refuse("the container id is not 64 hexadecimal digits".to_owned());
    }
    Ok(())
}

fn cleaned(mut status: TaskStatus, now: Timestamp) -> TaskStatus {
    status.timestamp = now;
    for text in [&mut status.message, &mut status.err] {
        if text.len() > MAX_TEXT {
            *text = text.chars().take(MAX_TEXT).collect();
        }
    }
    status.port_status.truncate(1024);
    status
}
