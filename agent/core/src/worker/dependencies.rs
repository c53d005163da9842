//! The secrets and configs that the tasks of this node need. They are in memory only: nothing here is saved, and a
//! node that has restarted waits until a manager sends them again.

use std::collections::BTreeMap;

use crate::api::{DependencyId, Payload, Task, dependency::Reference};

/// Contents by what they are the content of.
pub type Contents = BTreeMap<DependencyId, Payload>;

/// What the managers have sent and not withdrawn.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dependencies(Contents);

impl Dependencies {
    /// Takes a whole set in place of the one before.
    pub(crate) fn replace(&mut self, all: Vec<(DependencyId, Payload)>) {
        self.0 = all.into_iter().collect();
    }

    pub(crate) fn provide(&mut self, id: DependencyId, content: Payload) {
        self.0.insert(id, content);
    }

    pub(crate) fn withdraw(&mut self, id: &DependencyId) {
        self.0.remove(id);
    }

    /// What is here.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &DependencyId> {
        self.0.keys()
    }

    /// The contents that a task needs.
    ///
    /// # Errors
    /// The first that is not here, by kind and name.
    pub(crate) fn of(&self, task: &Task) -> Result<Contents, String> {
        let container = task.spec.container_spec.iter();
        let references = container.flat_map(|container| container.references());
        references
            .map(|reference| {
                let missing = || format!("{} {}", reference.kind.as_str(), reference.name);
                self.find(&reference).ok_or_else(missing)
            })
            .collect()
    }

    fn find(&self, reference: &Reference<'_>) -> Option<(DependencyId, Payload)> {
        let id = reference.dependency()?;
        let content = self.0.get(&id)?.clone();
        Some((id, content))
    }
}
