//! What this node's kernel must look like, and how to get there.
//!
//! Three inputs say everything: the [`mesh::MeshMap`] that the managers stream, the
//! [`mesh::Sandbox`]es of this node's containers, and the node's own addresses
//! ([`mesh::NodeNet`]). [`desired()`] turns them into a [`NetState`]; the host observes another one;
//! [`plan()`] is the list of steps between the two. Nothing remembers what was done before, so a
//! pass after any crash, and after any foreign hand in the kernel, is exact. A pass is
//!
//! ```text
//! loop { let ops = plan(&desired, &observe(&Scope::all(&desired))); if ops.is_empty() { break } apply(&ops) }
//! ```
//!
//! with a bound on the turns: the kernel does things of its own after a step (a link that goes down
//! takes its routes with it), which the next look sees.

pub mod address;
mod balancing;
pub mod desired;
pub mod dns;
pub mod mesh;
#[cfg(any(test, feature = "testing"))]
pub mod model;
pub mod plan;
mod rules;
pub mod ruleset;
pub mod state;

pub use desired::{Inputs, desired};
pub use mesh::{MeshMap, NodeNet, Sandbox};
pub use plan::{NetOp, Step, plan};
pub use state::{NetState, Ns, Scope};

#[cfg(any(test, feature = "testing"))]
pub mod example;
#[cfg(test)]
mod tests;
