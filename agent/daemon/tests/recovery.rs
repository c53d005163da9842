//! Real daemons whose disks are locked, and managers that lose their majority.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at what it did not expect; the lint knows only #[test] functions"
)]

mod common;

use std::fs;

use common::{Daemon, Swarm, eventually};
use serde_json::{Value, json};

/// What an answer says, if it is an error.
fn message(answer: Option<Value>) -> String {
    let answer = answer.unwrap_or_default();
    answer["message"].as_str().unwrap_or_default().to_owned()
}

fn state(swarm: &Swarm, node: &Daemon) -> String {
    let info = swarm.ask(node, "GET", "/v1.41/info", "");
    let info = info.unwrap_or_default();
    let state = info["Swarm"]["LocalNodeState"].as_str();
    state.unwrap_or_default().to_owned()
}

fn make_network(swarm: &Swarm, node: &Daemon, name: &str) -> Option<Value> {
    let network = json!({ "Name": name, "Driver": "overlay" }).to_string();
    swarm.ask(node, "POST", "/v1.41/networks/create", &network)
}

fn has_network(swarm: &Swarm, node: &Daemon, name: &str) -> bool {
    let path = format!("/v1.41/networks/{name}");
    let found = swarm.ask(node, "GET", &path, "").unwrap_or_default();
    found["Name"] == name
}

/// Turns autolock on or off, or rotates the key.
fn update_lock(swarm: &Swarm, node: &Daemon, autolock: bool, query: &str) {
    let found = swarm.ask(node, "GET", "/v1.41/swarm", "").unwrap();
    let mut spec = found["Spec"].clone();
    spec["EncryptionConfig"]["AutoLockManagers"] = autolock.into();
    let version = &found["Version"]["Index"];
    let path = format!("/v1.41/swarm/update?version={version}{query}");
    let answer = swarm.ask(node, "POST", &path, &spec.to_string());
    assert_eq!(answer, None);
}

fn unlock_key(swarm: &Swarm, node: &Daemon) -> String {
    let answer = swarm.ask(node, "GET", "/v1.41/swarm/unlockkey", "");
    answer.unwrap()["UnlockKey"].as_str().unwrap().to_owned()
}

fn unlock(swarm: &Swarm, node: &Daemon, key: &str) -> String {
    let body = json!({ "UnlockKey": key }).to_string();
    message(swarm.ask(node, "POST", "/v1.41/swarm/unlock", &body))
}

fn identity(swarm: &Swarm, node: &str) -> String {
    fs::read_to_string(swarm.folder.join(node).join("identity/node.json")).unwrap()
}

fn wait_locked(swarm: &Swarm, node: &Daemon, name: &str) {
    eventually("its secrets are locked", node, || {
        let file = identity(swarm, name);
        !file.contains("PRIVATE KEY") && file.contains("locked")
    });
}

#[test]
fn a_manager_with_autolock_serves_only_after_it_was_unlocked() {
    let swarm = Swarm::generate(60);
    let manager = swarm.start(1, "first-manager");
    let worker = swarm.start(2, "worker");
    swarm.wait_ready(&manager, &["node1", "node2"]);
    assert_eq!(unlock_key(&swarm, &manager), "");
    assert_eq!(
        unlock(&swarm, &manager, &format!("SWMKEY-1-{:A<43}", "")),
        "swarm is not locked"
    );
    assert!(identity(&swarm, "node1").contains("PRIVATE KEY"));
    update_lock(&swarm, &manager, true, "");
    let key = unlock_key(&swarm, &manager);
    assert!(key.starts_with("SWMKEY-1-"), "{key}");
    assert!(make_network(&swarm, &manager, "kept").unwrap()["Id"].is_string());
    wait_locked(&swarm, &manager, "node1");
    drop(manager);

    let manager = swarm.start(1, "first-manager");
    eventually("it is locked", &manager, || {
        state(&swarm, &manager) == "locked"
    });
    for (method, path) in [
        ("GET", "/v1.41/nodes"),
        ("GET", "/v1.41/swarm"),
        ("GET", "/v1.41/swarm/unlockkey"),
    ] {
        let refused = message(swarm.ask(&manager, method, path, ""));
        let words = "Swarm is encrypted and needs to be unlocked before it can be used.";
        assert!(refused.starts_with(words), "{path}: {refused}");
    }
    let left = message(swarm.ask(&manager, "POST", "/v1.41/swarm/leave", ""));
    assert!(left.contains("unlock it first"), "{left}");
    let other = format!("SWMKEY-1-{:A<43}", "");
    let refused = unlock(&swarm, &manager, &other);
    assert_eq!(refused, "swarm could not be unlocked: invalid key provided");
    let refused = unlock(&swarm, &manager, &key[..20]);
    assert!(refused.contains("invalid key string"), "{refused}");
    assert_eq!(state(&swarm, &manager), "locked");
    assert_eq!(unlock(&swarm, &manager, &key), "");
    swarm.wait_ready(&manager, &["node1", "node2"]);
    assert!(has_network(&swarm, &manager, "kept"));

    // Another key: the old one opens nothing any more. Then none at all.
    let before = identity(&swarm, "node1");
    update_lock(&swarm, &manager, true, "&rotateManagerUnlockKey=true");
    let next = unlock_key(&swarm, &manager);
    assert_ne!(next, key);
    eventually("it is locked again", &manager, || {
        manager.log().matches("has a new key").count() >= 2 && identity(&swarm, "node1") != before
    });
    drop(manager);
    let manager = swarm.start(1, "first-manager");
    eventually("it is locked", &manager, || {
        state(&swarm, &manager) == "locked"
    });
    assert!(unlock(&swarm, &manager, &key).contains("invalid key"));
    assert_eq!(unlock(&swarm, &manager, &next), "");
    swarm.wait_ready(&manager, &["node1", "node2"]);
    update_lock(&swarm, &manager, false, "");
    eventually("it is open", &manager, || {
        identity(&swarm, "node1").contains("PRIVATE KEY")
    });
    drop(manager);
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1", "node2"]);
    assert!(has_network(&swarm, &manager, "kept"));
    let log = manager.log() + &worker.log();
    assert!(!log.contains("SWMKEY") && !log.contains(&key[9..]) && !log.contains(&next[9..]));
}

#[test]
fn a_locked_manager_can_leave_by_force() {
    let swarm = Swarm::generate(61);
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1"]);
    update_lock(&swarm, &manager, true, "");
    wait_locked(&swarm, &manager, "node1");
    drop(manager);
    let manager = swarm.start(1, "first-manager");
    eventually("it is locked", &manager, || {
        state(&swarm, &manager) == "locked"
    });
    let left = swarm.ask(&manager, "POST", "/v1.41/swarm/leave?force=1", "");
    assert_eq!(left, None, "{left:?}");
    let node = swarm.folder.join("node1");
    assert!(!node.join("identity/node.json").exists() && !node.join("raft").exists());
}

/// What must be the same before and after.
fn kept(swarm: &Swarm, manager: &Daemon) -> Value {
    let ask = |path: &str| swarm.ask(manager, "GET", path, "").unwrap();
    let of = |list: Value, field: &str| {
        let mut ids: Vec<_> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item[field].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    let cluster = ask("/v1.41/swarm");
    json!({
        "tokens": cluster["JoinTokens"],
        "cluster": cluster["ID"],
        "nodes": of(ask("/v1.41/nodes"), "ID"),
        "services": of(ask("/v1.41/services"), "ID"),
        "networks": of(ask("/v1.41/networks"), "Id"),
    })
}

fn node(swarm: &Swarm, manager: &Daemon, name: &str) -> Value {
    let nodes = swarm.ask(manager, "GET", "/v1.41/nodes", "");
    let nodes = nodes.unwrap_or_default();
    let mut nodes = nodes.as_array().into_iter().flatten();
    let found = nodes.find(|node| node["Description"]["Hostname"] == name);
    found.cloned().unwrap_or_default()
}

#[test]
fn one_of_three_managers_goes_on_alone_with_everything() {
    let swarm = Swarm::generate(62);
    let first = swarm.start(1, "first-manager");
    let second = swarm.start(2, "manager");
    let third = swarm.start(3, "manager");
    let worker = swarm.start(4, "worker");
    swarm.wait_ready(&first, &["node1", "node2", "node3", "node4"]);
    for joined in [&second, &third] {
        let part = "takes part in consensus";
        eventually(part, joined, || joined.log().contains(part));
    }
    assert!(make_network(&swarm, &first, "kept").unwrap()["Id"].is_string());
    let service = json!({
        "Name": "kept",
        "TaskTemplate": { "ContainerSpec": { "Image": "example.org/none:1" } },
        "Mode": { "Replicated": { "Replicas": 1 } },
    });
    let made = swarm.ask(
        &first,
        "POST",
        "/v1.41/services/create",
        &service.to_string(),
    );
    assert!(made.as_ref().unwrap()["ID"].is_string(), "{made:?}");
    let before = kept(&swarm, &first);
    // A leader among those that are lost, or not: it makes no difference.
    drop((second, third));
    let refused = message(make_network(&swarm, &first, "lost"));
    assert!(refused.contains("does not have a leader"), "{refused}");

    let init = json!({ "ListenAddr": "0.0.0.0:2377", "ForceNewCluster": true }).to_string();
    let made = swarm
        .ask(&first, "POST", "/v1.41/swarm/init", &init)
        .unwrap();
    assert_eq!(
        made.as_str().map(str::len),
        Some(25),
        "{made}\n{}",
        first.log()
    );
    assert_eq!(kept(&swarm, &first), before);
    assert!(make_network(&swarm, &first, "after").unwrap()["Id"].is_string());
    eventually("its worker comes back", &first, || {
        swarm.ready(&first) == ["node1", "node4"]
    });
    assert_eq!(
        node(&swarm, &first, "node1")["ManagerStatus"]["Leader"],
        true
    );
    for name in ["node2", "node3"] {
        let lost = node(&swarm, &first, name);
        assert!(
            lost["ManagerStatus"].is_null() && lost["Spec"]["Role"] == "worker",
            "{lost}"
        );
    }
    // It survives a restart, and an old manager that comes back becomes a worker and harms nobody.
    drop(first);
    let first = swarm.start(1, "first-manager");
    swarm.wait_ready(&first, &["node1", "node4"]);
    let second = swarm.start(2, "manager");
    eventually("the old manager is a worker", &second, || {
        swarm.ready(&first) == ["node1", "node2", "node4"]
    });
    assert!(has_network(&swarm, &first, "after") && has_network(&swarm, &first, "kept"));
    eventually("nothing of its old log stays", &second, || {
        !swarm.folder.join("node2/raft").exists()
    });
    assert_eq!(state(&swarm, &worker), "active");
}

#[test]
fn nothing_is_made_anew_where_there_is_nothing() {
    let swarm = Swarm::generate(63);
    let first = swarm.start(1, "first-manager");
    let worker = swarm.start(2, "worker");
    swarm.wait_ready(&first, &["node1", "node2"]);
    let init = json!({ "ListenAddr": "0.0.0.0:2377", "ForceNewCluster": true }).to_string();
    let refused = message(swarm.ask(&worker, "POST", "/v1.41/swarm/init", &init));
    assert!(refused.contains("not a swarm manager"), "{refused}");
    assert_eq!(state(&swarm, &worker), "active");
}
