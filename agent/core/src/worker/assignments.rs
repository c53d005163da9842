//! What a manager assigns to this node, and whether a message continues the ones before it.

use crate::{
    api::{DependencyId, Payload, Task},
    id::Id,
};

/// One message of the Assignments stream (`docker.swarmkit.v1.AssignmentsMessage`): tasks, and the secrets and
/// configs that they need.
#[derive(Debug, Clone, PartialEq)]
pub enum Assignments {
    /// The whole set: what is not in it is not assigned.
    Complete {
        /// Name of the state after this message; the next message says that it applies to it.
        results_in: String,
        /// Every task of this node.
        tasks: Vec<Task>,
        /// Their secrets and configs. Some may follow in further messages.
        dependencies: Vec<(DependencyId, Payload)>,
    },
    /// A change of the set.
    Incremental {
        /// Name of the state that it changes.
        applies_to: String,
        /// Name of the state after it.
        results_in: String,
        /// The changes, in order.
        changes: Vec<AssignmentChange>,
    },
}

/// One change of the set of assigned tasks and of what they need.
#[derive(Debug, Clone, PartialEq)]
pub enum AssignmentChange {
    /// A task is new or has changed.
    Update(Box<Task>),
    /// A task is no longer assigned: stop it, remove it, forget it.
    Remove(Id<Task>),
    /// The content of a secret or config that a task here needs.
    Provide(DependencyId, Payload),
    /// No task here needs it any more: forget it.
    Withdraw(DependencyId),
}

/// Where in the stream of assignments this node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sequence(Option<String>);

impl Sequence {
    /// Whether a message continues the stream; if it does, the stream has moved on.
    pub(crate) fn accept(&mut self, message: &Assignments) -> bool {
        match message {
            Assignments::Complete { results_in, .. } => {
                self.0 = Some(results_in.clone());
                true
            }
            Assignments::Incremental {
                applies_to,
                results_in,
                ..
            } => {
                let continues = self.0.as_ref() == Some(applies_to);
                // After a gap nothing fits until the stream is opened again with a complete set.
                self.0 = continues.then(|| results_in.clone());
                continues
            }
        }
    }

    /// A new stream begins with a complete set.
    pub(crate) fn reset(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(results_in: &str) -> Assignments {
        Assignments::Complete {
            results_in: results_in.to_owned(),
            tasks: Vec::new(),
            dependencies: Vec::new(),
        }
    }

    fn incremental(applies_to: &str, results_in: &str) -> Assignments {
        Assignments::Incremental {
            applies_to: applies_to.to_owned(),
            results_in: results_in.to_owned(),
            changes: Vec::new(),
        }
    }

    #[test]
    fn a_stream_is_followed_until_a_gap() {
        let mut sequence = Sequence::default();
        assert!(!sequence.accept(&incremental("", "1")), "nothing before it");
        assert!(sequence.accept(&complete("1")));
        assert!(sequence.accept(&incremental("1", "2")));
        assert!(
            !sequence.accept(&incremental("3", "4")),
            "2 to 3 is missing"
        );
        assert!(
            !sequence.accept(&incremental("4", "5")),
            "no complete set since"
        );
        assert!(sequence.accept(&complete("9")));
        assert!(sequence.accept(&incremental("9", "10")));
        sequence.reset();
        assert!(!sequence.accept(&incremental("10", "11")));
    }
}
