//! What must hold after each step; one property per file.

mod acknowledged;
mod addresses;
pub(crate) mod convergence;
mod jobs;
mod mesh;
pub(crate) mod secrets;
mod slots;
mod states;

use skep_core::store::View;

use crate::world::World;

/// All of them, with what they remember.
#[derive(Default)]
pub(crate) struct Invariants {
    states: states::States,
    jobs: jobs::Jobs,
    secrets: secrets::Secrets,
    checked: u64,
}

impl Invariants {
    pub(crate) fn check(&mut self, world: &World, view: &View) {
        addresses::check_containers(world);
        slots::check_containers(world, view);
        self.secrets.learn(view);
        self.secrets.check(world);
        if self.checked == view.version() {
            return;
        }
        self.checked = view.version();
        self.states.check(view);
        self.jobs.check(view);
        addresses::check(view);
        slots::check(view);
        mesh::check(view);
        acknowledged::check(world, view);
    }
}
