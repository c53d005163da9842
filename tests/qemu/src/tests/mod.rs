//! The tests, by the groups of the walk-through and the rest of what must hold.

mod bad_input;
mod boot;
mod discovery;
mod host;
mod management;
mod managers;
mod mesh;
mod modes;
mod node_os;
mod nodes;
mod overlay;
mod resilience;
mod secrets;
mod services;

use crate::runner::Test;

/// Every test, in the order in which they run: the cheap ones first, those that break nodes last.
pub const REGISTERED: &[&[Test]] = &[
    host::TESTS,
    boot::TESTS,
    nodes::TESTS,
    node_os::TESTS,
    services::TESTS,
    modes::TESTS,
    secrets::TESTS,
    mesh::TESTS,
    overlay::TESTS,
    discovery::TESTS,
    management::TESTS,
    bad_input::TESTS,
    resilience::TESTS,
    managers::TESTS,
];
