//! The map of every node is sound, and differences lead from one to the next.

use skep_core::{manager::mesh::Mesh, store::View};

pub(crate) fn check(view: &View) {
    let mesh = Mesh::of(view);
    for node in view.nodes() {
        let map = mesh.map(view, &node.id);
        if let Err(error) = map.validate() {
            panic!("the map of node {}: {error}", node.id);
        }
    }
}
