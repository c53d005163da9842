//! No acknowledged write is lost.

use skep_core::store::View;

use crate::world::{Promise, World};

pub(crate) fn check(world: &World, view: &View) {
    for (id, promise) in &world.acknowledged {
        if *promise == Promise::Made {
            let service = view.service(id);
            assert!(
                service.is_some_and(|it| !it.pending_delete),
                "service {id} was acknowledged and is gone"
            );
        }
    }
}
