//! How a running container is stopped: out of the mesh first, then its stop signal, then SIGKILL.

use std::time::Duration;

use super::effect::Container;
use crate::time::Now;

/// How long to wait at most for every node to take the task out of its mesh.
const MESH_WAIT: Duration = Duration::from_secs(3);
/// Pause before SIGKILL is sent once more to what it did not end.
const KILL_AGAIN: Duration = Duration::from_secs(5);
/// The longest grace period that is honoured; a day is more than anybody waits for.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 3600);
const SIGKILL: i32 = 9;

/// How far stopping has come. Lost in a crash: then it begins anew, which only costs time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stopping {
    since: Option<Now>,
    asked: Option<Now>,
    killed: Option<Now>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopStep {
    /// Send this signal.
    Signal(i32),
    /// Look again then.
    Until(Now),
}

impl Stopping {
    /// Decides the next step for a running container. `left` says that no node sends it anything any more.
    pub(crate) fn step(&mut self, container: &Container, left: bool, now: Now) -> StopStep {
        let since = *self.since.get_or_insert(now);
        let Some(asked) = self.asked else {
            let at = since + MESH_WAIT;
            return match left || now >= at {
                true => StopStep::Signal(container.plan.stop_signal),
                false => StopStep::Until(at),
            };
        };
        let grace = Duration::from_nanos(container.plan.stop_grace).min(LONGEST_GRACE);
        let at = self
            .killed
            .map_or(asked + grace, |killed| killed + KILL_AGAIN);
        match now >= at {
            true => StopStep::Signal(SIGKILL),
            false => StopStep::Until(at),
        }
    }

    /// Notes that a signal was sent.
    pub(crate) fn sent(&mut self, signal: i32, now: Now) {
        if self.asked.is_none() {
            self.asked = Some(now);
        } else if signal == SIGKILL {
            self.killed = Some(now);
        }
    }
}
