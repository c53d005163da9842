//! What the managers have not heard yet.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    api::{Task, TaskStatus},
    id::Id,
    time::Now,
};

/// Statuses in one message: far below the 4 MiB that a manager accepts.
const BATCH: usize = 256;
/// Pause after a message that no manager took.
const PAUSE: Duration = Duration::from_secs(1);

/// What tasks have come to.
pub(crate) type Statuses = Vec<(Id<Task>, TaskStatus)>;

/// The latest status of each task that no manager has confirmed. One message is under way at a time.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    pending: BTreeMap<Id<Task>, TaskStatus>,
    under_way: Option<(u64, BTreeMap<Id<Task>, TaskStatus>)>,
    session: bool,
    batch: u64,
    not_before: Option<Now>,
}

impl Reporter {
    /// A task has a new status.
    pub(crate) fn report(&mut self, task: &Id<Task>, status: &TaskStatus) {
        self.pending.insert(task.clone(), status.clone());
    }

    /// Nobody wants to hear of a task any more.
    pub(crate) fn forget(&mut self, task: &Id<Task>) {
        self.pending.remove(task);
    }

    /// A session stands. The caller reports every task again: what was under way may be lost.
    pub(crate) fn begin_session(&mut self) {
        self.session = true;
        self.under_way = None;
        self.not_before = None;
    }

    /// The session is lost.
    pub(crate) fn end_session(&mut self) {
        self.session = false;
    }

    /// Whether a session stands.
    pub(crate) fn in_session(&self) -> bool {
        self.session
    }

    /// The next message, if one is due.
    pub(crate) fn next(&mut self, now: Now) -> Option<(u64, Statuses)> {
        let early = self.not_before.is_some_and(|at| at > now);
        if !self.session || early || self.under_way.is_some() || self.pending.is_empty() {
            return None;
        }
        let mut message = std::mem::take(&mut self.pending);
        if let Some(first_left) = message.keys().nth(BATCH).cloned() {
            self.pending = message.split_off(&first_left);
        }
        self.batch += 1;
        let list = message
            .iter()
            .map(|(id, status)| (id.clone(), status.clone()))
            .collect();
        self.under_way = Some((self.batch, message));
        Some((self.batch, list))
    }

    /// A manager has taken a message, or none has.
    pub(crate) fn done(&mut self, batch: u64, accepted: bool, now: Now) {
        if self.under_way.as_ref().is_none_or(|(id, _)| *id != batch) {
            return;
        }
        let Some((_, message)) = self.under_way.take() else {
            return;
        };
        if !accepted {
            self.not_before = Some(now + PAUSE);
            for (task, status) in message {
                self.pending.entry(task).or_insert(status);
            }
        }
    }

    /// When to look again.
    pub(crate) fn deadline(&self) -> Option<Now> {
        let waiting = self.session && self.under_way.is_none() && !self.pending.is_empty();
        self.not_before.filter(|_| waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TaskState;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus {
            state,
            ..TaskStatus::default()
        }
    }

    #[test]
    fn a_refused_message_is_sent_again_with_what_is_newer() {
        let (mut reporter, now) = (Reporter::default(), Now(0));
        let (a, b) = (Id::from_entropy(1), Id::from_entropy(2));
        reporter.report(&a, &status(TaskState::Accepted));
        reporter.report(&b, &status(TaskState::Accepted));
        assert_eq!(reporter.next(now), None, "no session");
        reporter.begin_session();
        let (batch, first) = reporter.next(now).unwrap();
        assert_eq!(first.len(), 2);
        reporter.report(&a, &status(TaskState::Running));
        assert_eq!(reporter.next(now), None, "one at a time");
        reporter.done(batch, false, now);
        assert_eq!(reporter.next(now), None, "a pause after a failure");
        let (batch, again) = reporter.next(now + PAUSE).unwrap();
        assert_eq!(
            again,
            vec![
                (a, status(TaskState::Running)),
                (b, status(TaskState::Accepted))
            ]
        );
        reporter.done(batch + 1, true, now);
        assert_eq!(
            reporter.next(now + PAUSE),
            None,
            "an answer to another message"
        );
        reporter.done(batch, true, now);
        assert_eq!(reporter.next(now + PAUSE), None, "all is heard");
    }

    #[test]
    fn messages_are_bounded() {
        let mut reporter = Reporter::default();
        for task in 0..600 {
            reporter.report(&Id::from_entropy(task), &status(TaskState::Running));
        }
        reporter.begin_session();
        let mut sizes = Vec::new();
        while let Some((batch, message)) = reporter.next(Now(0)) {
            sizes.push(message.len());
            reporter.done(batch, true, Now(0));
        }
        assert_eq!(sizes, [256, 256, 88]);
    }
}
