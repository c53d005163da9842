//! When the node's certificate is renewed, and the renewal that is under way.

use std::{sync::Arc, time::Duration};

use skep_core::{rng::Rng, time::Timestamp};
use skep_host::clock;
use tokio::task::JoinHandle;

use super::node::Running;
use crate::{
    identity::{NodeIdentity, certificate},
    rpc::join::{self, JoinFailure},
};

/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(30);

/// What is planned and what is under way.
#[derive(Default)]
pub(super) struct Renewal {
    pub(super) due: Option<Timestamp>,
    pub(super) work: Option<JoinHandle<Result<NodeIdentity, JoinFailure>>>,
}

impl Renewal {
    /// Plans a moment between half and four fifths of the certificate's life, so that nodes do not come
    /// together.
    pub(super) fn plan(&mut self, identity: &NodeIdentity, rng: &mut Rng) {
        let Ok((from, until)) = certificate::validity(&identity.certificate) else {
            return;
        };
        let life = until.since(from);
        let minutes = (life.as_secs() * 3 / 10) / 60;
        let chosen = Duration::from_secs(rng.below(minutes.max(1)) * 60);
        self.due = Some(from + life / 2 + chosen);
    }

    /// Plans another attempt after one that failed.
    pub(super) fn retry(&mut self) {
        self.due = Some(clock::timestamp() + RETRY);
    }

    /// Asks the managers one after the other, unless that is under way.
    pub(super) fn start(&mut self, running: Option<&Running>, managers: Vec<(String, String)>) {
        let Some(running) = running.filter(|_| self.work.is_none()) else {
            return;
        };
        self.due = None;
        let identity = running.identity.clone();
        let cell = Arc::clone(&running.cell);
        let advertise = running.advertise;
        self.work = Some(tokio::spawn(async move {
            let mut last = JoinFailure::Temporary("no manager is known".to_owned());
            for (_, addr) in managers {
                let cell = Arc::clone(&cell);
                match join::renew(&identity, cell, &addr, Some(advertise)).await {
                    Ok(identity) => return Ok(identity),
                    Err(failure) => last = failure,
                }
            }
            Err(last)
        }));
    }
}
