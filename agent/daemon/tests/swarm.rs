//! Real daemons on one machine, each on a loopback address of its own: they form a swarm, survive what is
//! done to them, and refuse what they should.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at what it did not expect; the lint knows only #[test] functions"
)]

mod common;

use std::{fs, io::Write, net::TcpStream};

use common::{Daemon, Swarm, Trust, eventually};
use serde_json::Value;

#[test]
fn nodes_that_boot_at_the_same_moment_form_one_swarm_and_keep_it() {
    let swarm = Swarm::generate(41);
    // The workers come first and have to wait for their manager.
    let worker = swarm.start(2, "worker");
    let second = swarm.start(3, "worker");
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1", "node2", "node3"]);

    // kill -9 of all, and all come back as who they were.
    let before = swarm.ask(&manager, "GET", "/v1.41/nodes", "").unwrap();
    drop((worker, manager, second));
    let worker = swarm.start(2, "worker");
    let manager = swarm.start(1, "first-manager");
    let second = swarm.start(3, "worker");
    swarm.wait_ready(&manager, &["node1", "node2", "node3"]);
    let after = swarm.ask(&manager, "GET", "/v1.41/nodes", "").unwrap();
    assert_eq!(ids(&before), ids(&after));

    // A node that is gone is seen to be gone; one that leaves is so at once.
    drop(second);
    let left = swarm.ask(&worker, "POST", "/v1.41/swarm/leave", "");
    assert_eq!(left, None, "{left:?}");
    eventually("the others are down", &manager, || {
        swarm.ready(&manager) == ["node1"]
    });
}

fn ids(nodes: &Value) -> Vec<String> {
    let nodes = nodes.as_array().unwrap();
    let mut ids: Vec<String> = nodes
        .iter()
        .map(|node| node["ID"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn a_second_manager_takes_part_and_forwards() {
    let swarm = Swarm::generate(42);
    let first = swarm.start(1, "first-manager");
    let second = swarm.start(2, "manager");
    swarm.wait_ready(&first, &["node1", "node2"]);
    swarm.wait_ready(&second, &["node1", "node2"]);
    let network = r#"{"Name":"by-follower","Driver":"overlay"}"#;
    let made = swarm.ask(&second, "POST", "/v1.41/networks/create", network);
    let made = made.unwrap();
    assert!(made["Id"].is_string(), "{made}\n{}", second.log());
    let find = |node| swarm.ask(node, "GET", "/v1.41/networks/by-follower", "");
    assert_eq!(find(&first).unwrap()["Name"], "by-follower");
    assert_eq!(find(&second).unwrap()["Name"], "by-follower");
}

#[test]
fn three_managers_lose_their_leader_and_go_on() {
    let swarm = Swarm::generate(44);
    let first = swarm.start(1, "first-manager");
    let second = swarm.start(2, "manager");
    let third = swarm.start(3, "manager");
    swarm.wait_ready(&first, &["node1", "node2", "node3"]);
    for joined in [&second, &third] {
        let part = "takes part in consensus";
        eventually(part, joined, || joined.log().contains(part));
    }
    drop(first);
    let leads = "this manager leads";
    eventually(leads, &second, || {
        second.log().contains(leads) || third.log().contains(leads)
    });
    swarm.wait_ready(&second, &["node2", "node3"]);
    let network = r#"{"Name":"after","Driver":"overlay"}"#;
    let made = swarm.ask(&second, "POST", "/v1.41/networks/create", network);
    assert!(made.unwrap()["Id"].is_string());
    // The lost one comes back as a follower and has what it missed.
    let first = swarm.start(1, "first-manager");
    swarm.wait_ready(&first, &["node1", "node2", "node3"]);
    eventually("it has what it missed", &first, || {
        let found = swarm.ask(&first, "GET", "/v1.41/networks/after", "");
        found.is_some_and(|found| found["Name"] == "after")
    });
}

/// The document of the node called so.
fn node(swarm: &Swarm, manager: &Daemon, name: &str) -> Option<Value> {
    let nodes = swarm.ask(manager, "GET", "/v1.41/nodes", "")?;
    let mut nodes = nodes.as_array()?.iter().cloned();
    nodes.find(|node| node["Description"]["Hostname"] == name)
}

/// Gives a node another role, and tells what the manager answers when it refuses.
fn set_role(swarm: &Swarm, manager: &Daemon, name: &str, role: &str) -> Option<Value> {
    let found = node(swarm, manager, name).unwrap();
    let mut spec = found["Spec"].clone();
    spec["Role"] = role.into();
    let (id, version) = (&found["ID"], &found["Version"]["Index"]);
    let path = format!(
        "/v1.41/nodes/{}/update?version={version}",
        id.as_str().unwrap()
    );
    swarm.ask(manager, "POST", &path, &spec.to_string())
}

fn reachability(swarm: &Swarm, manager: &Daemon, name: &str) -> String {
    let found = node(swarm, manager, name).unwrap_or_default();
    let shown = found["ManagerStatus"]["Reachability"].as_str();
    shown.unwrap_or_default().to_owned()
}

#[test]
fn managers_are_promoted_demoted_and_leave_without_a_loss_of_quorum() {
    let swarm = Swarm::generate(48);
    let first = swarm.start(1, "first-manager");
    let second = swarm.start(2, "worker");
    let third = swarm.start(3, "worker");
    swarm.wait_ready(&first, &["node1", "node2", "node3"]);
    let last = set_role(&swarm, &first, "node1", "worker").unwrap_or_default();
    assert!(last.to_string().contains("the last manager"), "{last}");

    for name in ["node2", "node3"] {
        assert_eq!(set_role(&swarm, &first, name, "manager"), None);
        eventually("the promoted one is a manager", &first, || {
            reachability(&swarm, &first, name) == "reachable"
        });
    }
    // Each of them manages now, and the leader can become a worker.
    eventually("the promoted one answers", &third, || {
        node(&swarm, &third, "node1").is_some()
    });
    assert_eq!(set_role(&swarm, &third, "node1", "worker"), None);
    eventually("the old leader is a worker", &second, || {
        let found = node(&swarm, &second, "node1").unwrap_or_default();
        found["ManagerStatus"].is_null() && found["Status"]["State"] == "ready"
    });
    eventually("a worker does not manage", &first, || {
        let refused = swarm
            .ask(&first, "GET", "/v1.41/nodes", "")
            .unwrap_or_default();
        refused.to_string().contains("not a swarm manager")
    });

    // With one of two managers gone there is no majority, and no demotion is accepted; the other one comes back.
    drop(third);
    let refused = set_role(&swarm, &second, "node3", "worker").unwrap_or_default();
    assert!(
        refused.to_string().contains("does not have a leader"),
        "{refused}"
    );
    let third = swarm.start(3, "worker");
    eventually("both manage again", &third, || {
        let network = r#"{"Name":"both","Driver":"overlay"}"#;
        let made = swarm.ask(&third, "POST", "/v1.41/networks/create", network);
        made.is_some_and(|made| made["Id"].is_string())
    });

    // A manager that leaves is no loss to the one that stays.
    let left = swarm.ask(&third, "POST", "/v1.41/swarm/leave?force=1", "");
    assert_eq!(left, None, "{left:?}");
    let network = r#"{"Name":"alone","Driver":"overlay"}"#;
    let made = swarm.ask(&second, "POST", "/v1.41/networks/create", network);
    assert!(made.unwrap()["Id"].is_string());
    eventually("it is down and no manager", &second, || {
        let found = node(&swarm, &second, "node3").unwrap_or_default();
        found["ManagerStatus"].is_null() && found["Status"]["State"] == "down"
    });
}

#[test]
fn an_operator_makes_a_swarm_leaves_it_and_joins_another() {
    let swarm = Swarm::generate(45);
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1"]);
    let role = swarm.folder.join("nothing");
    fs::create_dir_all(role.join("credentials")).unwrap();
    let operators = "credentials/skep.operator-ca";
    fs::copy(swarm.role("worker").join(operators), role.join(operators)).unwrap();
    let node = swarm.start_with(2, &role);
    let ask = |method: &str, path: &str, body: &str| {
        swarm.ask_trusting(Trust::OnSight, &node, method, path, body)
    };
    let state = || {
        let info = ask("GET", "/v1.41/info", "")?;
        Some(info["Swarm"]["LocalNodeState"].as_str()?.to_owned())
    };
    let is = |wanted: &str| state().as_deref() == Some(wanted);
    eventually("it waits", &node, || is("inactive"));

    let init = r#"{"ListenAddr":"0.0.0.0:2377"}"#;
    let made = ask("POST", "/v1.41/swarm/init", init).unwrap();
    assert_eq!(made.as_str().map(str::len), Some(25), "{made}");
    assert!(is("active"), "the first session stands when init answers");
    let again = ask("POST", "/v1.41/swarm/init", init).unwrap();
    let again = again["message"].as_str().unwrap_or_default().to_owned();
    assert!(again.contains("already part of a swarm"), "{again}");
    let kept = ask("POST", "/v1.41/swarm/leave", "").unwrap();
    let kept = kept["message"].as_str().unwrap_or_default().to_owned();
    assert!(kept.contains("--force"), "{kept}");
    ask("POST", "/v1.41/swarm/leave?force=true", "");
    assert!(is("inactive"));

    let join = fs::read_to_string(swarm.role("worker/credentials/skep.join")).unwrap();
    let (token, address) = join.trim().split_once('@').unwrap();
    let body = format!(
        r#"{{"ListenAddr":"0.0.0.0:2377","RemoteAddrs":["{address}"],"JoinToken":"{token}"}}"#
    );
    ask("POST", "/v1.41/swarm/join", &body);
    assert!(is("active"), "the first session stands when join answers");
    swarm.wait_ready(&manager, &["node1", "node2"]);
}

#[test]
fn wrong_tokens_and_hostile_bytes_harm_nobody() {
    let swarm = Swarm::generate(43);
    let manager = swarm.start(1, "first-manager");
    swarm.wait_ready(&manager, &["node1"]);
    let good = fs::read_to_string(swarm.role("worker/credentials/skep.join")).unwrap();
    let cases = [
        (damaged(&good, 3), "join token"),
        (damaged(&good, 2), "digest"),
        (
            good.replace(&swarm.address(1), &swarm.address(9)),
            "cannot reach",
        ),
    ];
    for (number, (value, said)) in (2..).zip(cases) {
        let role = swarm.folder.join(format!("bad{number}"));
        fs::create_dir_all(role.join("credentials")).unwrap();
        fs::write(role.join("credentials/skep.join"), value).unwrap();
        let operators = "credentials/skep.operator-ca";
        fs::copy(swarm.role("worker").join(operators), role.join(operators)).unwrap();
        let mut node = swarm.start_with(number, &role);
        eventually(said, &node, || node.log().contains(said));
        assert!(node.child.try_wait().unwrap().is_none(), "it stays up");
    }
    for seed in 0..50u32 {
        let mut stream = TcpStream::connect((manager.address.as_str(), 2377)).unwrap();
        let junk: Vec<u8> = (0..600u32)
            .map(|at| {
                seed.wrapping_add(at)
                    .wrapping_mul(2_654_435_761)
                    .to_be_bytes()[0]
            })
            .collect();
        // The other side may close in the middle: that is an answer, too.
        let _ = stream.write_all(&junk);
    }
    assert_eq!(swarm.ready(&manager), ["node1"]);
    assert!(!manager.log().contains("panicked"), "{}", manager.log());
}

#[test]
fn a_second_machine_with_the_same_id_is_refused_by_name() {
    let swarm = Swarm::generate(46);
    let manager = swarm.start(1, "first-manager");
    let one = swarm.start_on_machine(2, &swarm.role("worker"), "cloned");
    swarm.wait_ready(&manager, &["node1", "node2"]);
    let mut two = swarm.start_on_machine(3, &swarm.role("worker"), "cloned");
    eventually("the log names both machines", &two, || {
        let log = two.log();
        let mut lines = log.lines();
        lines.any(|line| line.contains("cloned") && line.contains("node2"))
    });
    eventually("info says it", &two, || {
        let info = swarm.ask_trusting(Trust::OnSight, &two, "GET", "/v1.41/info", "");
        let error = info.map(|info| info["Swarm"]["Error"].to_string());
        error.is_some_and(|error| error.contains("cloned") && error.contains("node2"))
    });
    assert_eq!(swarm.ready(&manager), ["node1", "node2"]);
    assert!(two.child.try_wait().unwrap().is_none(), "it stays up");
    drop(one);
}

/// The token of `TOKEN@ADDRESS` with the last digit of one part changed.
fn damaged(join: &str, part: usize) -> String {
    let (token, address) = join.split_once('@').unwrap();
    let mut parts: Vec<String> = token.split('-').map(str::to_owned).collect();
    let last = parts[part].pop().unwrap();
    parts[part].push(if last == '0' { '1' } else { '0' });
    format!("{}@{address}", parts.join("-"))
}
