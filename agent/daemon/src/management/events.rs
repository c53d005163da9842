//! What changed between two versions of the cluster, for `GET /events` and the signals on D-Bus.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use skep_core::{store::View, time::Timestamp};

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `service`, `node`, `network`, `secret` or `config`.
    pub kind: &'static str,
    /// `create`, `update` or `remove`.
    pub action: &'static str,
    /// The object.
    pub id: String,
    /// Its name.
    pub name: String,
}

impl Event {
    /// The document of `GET /events`.
    pub fn document(&self, at: Timestamp) -> Value {
        json!({
            "Type": self.kind,
            "Action": self.action,
            "Actor": { "ID": self.id, "Attributes": { "name": self.name } },
            "scope": "swarm",
            "time": at.unix_seconds(),
            "timeNano": i64::try_from(at.0).unwrap_or(i64::MAX),
        })
    }
}

/// The changes from `old` to `new`, removed objects first. Changes in between that cancelled each other
/// out do not show.
pub fn between(old: &View, new: &View) -> Vec<Event> {
    let mut events = Vec::new();
    compare("service", services(old), services(new), &mut events);
    compare("node", nodes(old), nodes(new), &mut events);
    compare("network", networks(old), networks(new), &mut events);
    compare("secret", secrets(old), secrets(new), &mut events);
    compare("config", configs(old), configs(new), &mut events);
    events
}

/// Id to name and version.
type Objects = BTreeMap<String, (String, u64)>;

fn services(view: &View) -> Objects {
    view.services()
        .filter(|service| !service.pending_delete)
        .map(|one| {
            (
                one.id.to_string(),
                (one.spec.name.clone(), one.meta.version),
            )
        })
        .collect()
}

fn nodes(view: &View) -> Objects {
    view.nodes()
        .map(|node| {
            let description = node.description.as_ref();
            let name = description.map_or_else(String::new, |known| known.hostname.clone());
            (node.id.to_string(), (name, node.meta.version))
        })
        .collect()
}

fn networks(view: &View) -> Objects {
    view.networks()
        .map(Arc::as_ref)
        .map(|one| {
            (
                one.id.to_string(),
                (one.spec.name.clone(), one.meta.version),
            )
        })
        .collect()
}

fn secrets(view: &View) -> Objects {
    view.secrets()
        .map(|one| {
            (
                one.id.to_string(),
                (one.spec.name.clone(), one.meta.version),
            )
        })
        .collect()
}

fn configs(view: &View) -> Objects {
    view.configs()
        .map(|one| {
            (
                one.id.to_string(),
                (one.spec.name.clone(), one.meta.version),
            )
        })
        .collect()
}

fn compare(kind: &'static str, old: Objects, new: Objects, events: &mut Vec<Event>) {
    let event = |action, id: &str, name: &str| Event {
        kind,
        action,
        id: id.to_owned(),
        name: name.to_owned(),
    };
    for (id, (name, _)) in &old {
        if !new.contains_key(id) {
            events.push(event("remove", id, name));
        }
    }
    for (id, (name, version)) in &new {
        match old.get(id) {
            None => events.push(event("create", id, name)),
            Some((_, before)) if before != version => events.push(event("update", id, name)),
            Some(_) => {}
        }
    }
}
