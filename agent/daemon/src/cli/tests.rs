//! The command line over both transports, against the same swarm in memory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Parser;
use skep_core::wire::unlock::UnlockKey;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use super::{
    Cli, bus, carry_out,
    engine::{Engine, Host},
    output::capture,
    swarm_lock,
    transport::Transport,
};
use crate::{
    dbus::tests::PrivateBus,
    docker_api::{
        listener, router,
        tests::{certificates::certificates, scratch},
    },
    management::memory,
};

/// Runs a command; its exit status and what it has written.
async fn run(transport: &dyn Transport, arguments: &str) -> (Result<(), String>, String, String) {
    let words = super::service_flags::words(arguments).unwrap();
    let cli = Cli::try_parse_from(["skep".to_owned()].into_iter().chain(words)).unwrap();
    capture::start();
    let result = carry_out(transport, cli.command).await;
    let (out, errors) = capture::end();
    let result = result.map(|_| ()).map_err(|error| format!("{error:#}"));
    (result, out, errors)
}

/// A command that must succeed; what it has written to standard output.
async fn ok(transport: &dyn Transport, arguments: &str) -> String {
    let (result, out, _) = run(transport, arguments).await;
    assert_eq!(result, Ok(()), "{arguments}");
    out
}

/// The same with texts that must be in the output.
async fn shows(transport: &dyn Transport, arguments: &str, wanted: &[&str]) -> String {
    let out = ok(transport, arguments).await;
    for wanted in wanted {
        assert!(out.contains(wanted), "{arguments}: no {wanted:?} in\n{out}");
    }
    out
}

fn socket(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("skep-cli-{name}-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn serve(path: &Path) -> Engine {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(listener::serve_unix(listener, router(memory::management())));
    Engine::new(Host::Unix(path.to_owned()), None).unwrap()
}

#[tokio::test]
async fn the_verbs_work_over_the_engine_api() {
    let path = socket("engine");
    let engine = serve(&path);
    verbs(&engine).await;
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn the_verbs_work_over_dbus() {
    let private = PrivateBus::start();
    let _agent = private.serve(memory::management()).await;
    let bus = bus::Bus::over(private.connect().await);
    verbs(&bus).await;
}

#[tokio::test]
async fn secrets_and_configs_work_over_both() {
    let path = socket("dependencies");
    let engine = serve(&path);
    of_dependencies(&engine).await;
    std::fs::remove_file(path).unwrap();
    let private = PrivateBus::start();
    let _agent = private.serve(memory::management()).await;
    of_dependencies(&bus::Bus::over(private.connect().await)).await;
}

async fn verbs(node: &dyn Transport) {
    of_the_swarm(node).await;
    of_nodes(node).await;
    of_the_lock(node).await;
    of_networks(node).await;
    of_modes(node).await;
    of_services(node).await;
    of_containers(node).await;
    assert_eq!(ok(node, "service rm whoami").await, "whoami\n");
    assert_eq!(ok(node, "service ls -q").await, "");
    refusals(node).await;
    assert_eq!(ok(node, "network rm my-demo").await, "my-demo\n");
    let left = ok(node, "swarm leave --force").await;
    assert_eq!(left, "Node left the swarm.\n");
}

#[tokio::test]
async fn a_locked_manager_is_unlocked_with_its_key_only() {
    let (management, key) = memory::locked();
    let path = socket("locked");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(listener::serve_unix(listener, router(management)));
    let node = Engine::new(Host::Unix(path.clone()), None).unwrap();
    shows(&node, "info", &["Swarm: locked"]).await;
    let (refused, _, _) = run(&node, "node ls").await;
    assert!(refused.unwrap_err().contains("needs to be unlocked"));
    for (wrong, says) in [
        (
            UnlockKey::new([1; 32]).text().as_str(),
            "invalid key provided",
        ),
        ("SWMKEY-2-x", "invalid key string"),
    ] {
        let refused = swarm_lock::unlock_with(&node, wrong).await.unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
    }
    swarm_lock::unlock_with(&node, &key.text()).await.unwrap();
    shows(&node, "node ls", &["Leader"]).await;
    let (refused, _, _) = run(&node, "swarm unlock").await;
    assert_eq!(refused, Err("swarm is not locked".to_owned()));
    std::fs::remove_file(path).unwrap();
}

async fn of_the_swarm(node: &dyn Transport) {
    shows(node, "info", &["Swarm: inactive", "Name: swarm-manager"]).await;
    shows(node, "version", &["API version:      1.45"]).await;
    let init = shows(
        node,
        "swarm init --advertise-addr 192.168.77.11",
        &[
            "is now a manager",
            "skep swarm join --token SWMTKN-1-",
            " 192.168.77.11:2377",
        ],
    )
    .await;
    assert!(
        init.starts_with("Swarm initialized: current node ("),
        "{init}"
    );
    let token = ok(node, "swarm join-token -q worker").await;
    shows(
        node,
        "swarm join-token --rotate worker",
        &["Successfully rotated"],
    )
    .await;
    assert_ne!(ok(node, "swarm join-token -q worker").await, token);
    shows(
        node,
        "info",
        &["Swarm: active", "Nodes: 3", "Heartbeat Period: 5 seconds"],
    )
    .await;
    let nodes = shows(
        node,
        "node ls",
        &["swarm-worker2", "Leader", "Ready", "Active"],
    )
    .await;
    assert_eq!(nodes.matches(" * ").count(), 1, "{nodes}");
    shows(
        node,
        "node inspect self swarm-worker1",
        &["192.168.77.21", "192.168.77.11"],
    )
    .await;
}

async fn of_the_lock(node: &dyn Transport) {
    let (refused, _, _) = run(node, "swarm unlock-key").await;
    assert_eq!(refused, Err("no unlock key is set".to_owned()));
    let (refused, _, _) = run(node, "swarm unlock-key --rotate").await;
    assert!(refused.unwrap_err().contains("autolock is not turned on"));
    shows(
        node,
        "swarm update --autolock",
        &["Swarm updated.", "`skep swarm unlock`", "    SWMKEY-1-"],
    )
    .await;
    let key = ok(node, "swarm unlock-key -q").await;
    assert!(key.starts_with("SWMKEY-1-") && key.lines().count() == 1);
    shows(node, "swarm unlock-key", &[key.trim(), "password manager"]).await;
    let rotated = ok(node, "swarm unlock-key --rotate -q").await;
    assert!(rotated.starts_with("SWMKEY-1-") && rotated != key);
    let updated = ok(node, "swarm update --autolock=false --task-history-limit 3").await;
    assert_eq!(updated, "Swarm updated.\n");
    let (refused, _, _) = run(node, "swarm update").await;
    assert!(refused.unwrap_err().contains("nothing to change"));
}

async fn of_nodes(node: &dyn Transport) {
    let drain =
        "node update --availability drain --label-add disk=ssd --label-add old swarm-worker1";
    assert_eq!(ok(node, drain).await, "swarm-worker1\n");
    shows(node, "node ls --filter node.label=disk=ssd", &["Drain"]).await;
    ok(
        node,
        "node update --availability active --label-rm old swarm-worker1",
    )
    .await;
    let inspected = shows(node, "node inspect swarm-worker1", &["active", "ssd"]).await;
    assert!(!inspected.contains("\"old\""), "{inspected}");
    for (verb, said) in [
        (
            "promote",
            "Node swarm-worker1 promoted to a manager in the swarm.\n",
        ),
        ("promote", "Node swarm-worker1 is already a manager.\n"),
        ("demote", "Manager swarm-worker1 demoted in the swarm.\n"),
        ("demote", "Node swarm-worker1 is already a worker.\n"),
    ] {
        assert_eq!(ok(node, &format!("node {verb} swarm-worker1")).await, said);
    }
}

async fn of_networks(node: &dyn Transport) {
    ok(node, "network create my-demo").await;
    let listed = ok(node, "network ls").await;
    let names: Vec<&str> = listed
        .lines()
        .skip(1)
        .map(|line| line[15..].split(' ').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "bridge",
            "docker_gwbridge",
            "host",
            "ingress",
            "my-demo",
            "none"
        ]
    );
}

async fn of_services(node: &dyn Transport) {
    shows(
        node,
        "service create --name whoami --network my-demo --replicas 3 -p 8000:8000 --update-monitor 50ms -e A=b \
         whoami serve --port 8000",
        &["overall progress: 3 out of 3 tasks", "verify: Service converged"],
    )
    .await;
    shows(
        node,
        "service ls",
        &[
            "whoami    replicated   3/3",
            "whoami:latest   *:8000->8000/tcp",
        ],
    )
    .await;
    shows(
        node,
        "service inspect whoami",
        &[
            "\"whoami:latest@sha256:0",
            "\"A=b\"",
            "\"--port\"",
            "\"10.255.0.",
        ],
    )
    .await;
    let two = ["verify: Service converged", "whoami scaled to 2"];
    shows(node, "service scale whoami=2", &two).await;
    let published = [
        "overall progress: 2 out of 2 tasks",
        "verify: Service converged",
    ];
    shows(
        node,
        "service update --publish-add 8080:8000 --env-rm A whoami",
        &published,
    )
    .await;
    shows(
        node,
        "service ls --filter name=who",
        &["2/2", "*:8000->8000/tcp, *:8080->8000/tcp"],
    )
    .await;
    of_logs(node).await;
    shows(
        node,
        "service ps whoami",
        &[" \\_ whoami.1", "Shutdown", "Running", " ago"],
    )
    .await;
    shows(node, "explain whoami", &["every task of whoami runs"]).await;
}

/// Of a service that was replaced once.
async fn of_logs(node: &dyn Transport) {
    let lines = shows(
        node,
        "service logs whoami",
        &["whoami.1.", "@swarm-", "    | I'm slot 2\n"],
    )
    .await;
    assert!(
        lines.lines().count() >= 4,
        "the history has said something, too: {lines}"
    );
    let one = lines.split('@').next().unwrap();
    let task = one.rsplit('.').next().unwrap();
    assert_eq!(
        ok(node, &format!("service logs --raw {task}"))
            .await
            .lines()
            .count(),
        1
    );
    let (result, _, _) = run(node, "service logs --tail some whoami").await;
    assert!(result.unwrap_err().contains("want a number of lines"));
}

async fn of_modes(node: &dyn Transport) {
    shows(
        node,
        "service create --mode global --name agent --placement-pref spread=node.labels.zone --update-monitor 50ms \
         whoami",
        &["overall progress: 3 out of 3 tasks", "verify: Service converged"],
    )
    .await;
    shows(
        node,
        "service create --mode replicated-job --name sum --replicas 4 --max-concurrent 2 whoami",
        &["job progress: 4 out of 4 complete", "job complete"],
    )
    .await;
    let scan = "service create --mode global-job --name scan whoami";
    shows(
        node,
        scan,
        &["job progress: 3 out of 3 complete", "job complete"],
    )
    .await;
    shows(
        node,
        "service ls",
        &[
            "agent     global           3/3",
            "sum       replicated job   0/2 (4/4 completed)",
            "scan      global job       0/0 (3/3 completed)",
        ],
    )
    .await;
    shows(node, "service ls --filter mode=global", &["agent"]).await;
    let again = shows(node, "service update --force sum", &["job complete"]).await;
    assert!(!again.contains("verify"), "{again}");
    shows(
        node,
        "service inspect sum",
        &["\"JobIteration\": {\n", "\"Index\": 1\n"],
    )
    .await;
    shows(node, "service ps sum", &["sum.0", "sum.3", "Complete"]).await;
    let id = ok(node, "node ls -q").await;
    let id = id.lines().next().unwrap();
    shows(node, "service ps agent", &[&format!("agent.{}", &id[..12])]).await;
    shows(node, "explain scan", &["every task of scan runs"]).await;
    let (result, _, _) = run(node, "service scale agent=2").await;
    let refused = result.unwrap_err();
    let why = "scale can only be used with replicated or replicated-job mode";
    assert_eq!(refused, format!("agent: {why}"));
    ok(node, "service rm agent sum scan").await;
}

async fn of_containers(node: &dyn Transport) {
    let containers = shows(node, "ps", &["whoami.", "Up ", "\"serve --port 8000\""]).await;
    let id = containers.lines().nth(1).unwrap()[..12].to_owned();
    let (result, out, errors) = run(node, &format!("logs --tail 2 {id}")).await;
    assert_eq!(
        (result, out.as_str(), errors.as_str()),
        (Ok(()), "GET /\n", "a warning\n")
    );
}

async fn of_dependencies(node: &dyn Transport) {
    ok(node, "swarm init --advertise-addr 192.168.77.11").await;
    let folder = scratch("cli-content");
    let path = folder.join("content");
    std::fs::write(&path, "canary-5e1f").unwrap();
    let path = path.display();
    for kind in ["secret", "config"] {
        let id = ok(node, &format!("{kind} create -l tier=data db-1 {path}")).await;
        ok(node, &format!("{kind} create db-2 {path}")).await;
        let table = shows(node, &format!("{kind} ls"), &[id.trim(), "db-2", " ago"]).await;
        let heading = table.lines().next().unwrap();
        assert_eq!(heading.contains("DRIVER"), kind == "secret", "{heading}");
        assert_eq!(
            ok(node, &format!("{kind} ls -q --filter label=tier")).await,
            id
        );
        let shown = ok(node, &format!("{kind} inspect db-1")).await;
        assert_eq!(
            shown.contains("Y2FuYXJ5LTVlMWY="),
            kind == "config",
            "{shown}"
        );
        let listed = shows(node, &format!("{kind} ls --format json"), &["db-1"]).await;
        assert_eq!(
            listed.contains("Y2FuYXJ5LTVlMWY="),
            kind == "config",
            "{listed}"
        );
        let (result, _, _) = run(node, &format!("{kind} create db-1 {path}")).await;
        assert_eq!(result, Err(format!("{kind} db-1 already exists")));
        for flag in ["--template-driver golang", "--driver vault"] {
            let (result, _, _) = run(node, &format!("{kind} create {flag} x {path}")).await;
            assert!(result.is_err(), "{flag}");
        }
    }
    ok(
        node,
        "service create -d --name user --secret src=db-1,target=db,uid=33,gid=34,mode=0400 --config db-1 whoami",
    )
    .await;
    let inspected = ok(node, "service inspect user").await;
    for wanted in [
        "\"Mode\": 256",
        "\"UID\": \"33\"",
        "\"SecretName\": \"db-1\"",
    ] {
        assert!(inspected.contains(wanted), "{wanted} in {inspected}");
    }
    let (result, _, _) = run(node, "secret rm db-1").await;
    let words = "secret 'db-1' is in use by the following service: user";
    assert_eq!(result, Err(words.to_owned()));
    let change = "service update -d --secret-rm db-1 --secret-add source=db-2,target=db --config-rm db-1 user";
    ok(node, change).await;
    assert_eq!(ok(node, "secret rm db-1").await, "db-1\n");
    assert_eq!(ok(node, "config rm db-1 db-2").await, "db-1\ndb-2\n");
    assert_eq!(ok(node, "service rm user").await, "user\n");
    assert_eq!(ok(node, "secret rm db-2").await, "db-2\n");
    std::fs::remove_dir_all(folder).unwrap();
}

async fn refusals(node: &dyn Transport) {
    let cases = [
        ("swarm init", "already part of a swarm"),
        ("swarm leave", "manager"),
        ("service inspect nothing", "service nothing not found"),
        (
            "service create --network nothing whoami",
            "network nothing not found",
        ),
        ("service create -p 80:80:80 whoami", "is not a port"),
        (
            "service create --mode global --replicas 2 whoami",
            "replicas can only be used with replicated or replicated-job mode",
        ),
        (
            "service create --mode global-job --update-delay 1s whoami",
            "update and rollback configuration is not supported for jobs",
        ),
        (
            "service create --placement-pref spread=node.ip whoami",
            "\"node.ip\" is no label",
        ),
        ("service create --name Bad_Name! whoami", "name"),
        ("secret inspect nothing", "secret nothing not found"),
        ("config rm nothing", "config nothing not found"),
        ("secret create x /not/there", "/not/there"),
        ("secret create x /dev/null", "must be larger than 0"),
        ("secret ls --filter colour=red", "invalid filter 'colour'"),
        (
            "service create --secret nothing whoami",
            "secret not found: nothing",
        ),
        ("service scale x=y", "is not a number"),
        ("service scale x=1", "service x not found"),
        ("network create -d bridge local", "bridge"),
        ("network rm host", "cannot be removed"),
        ("node inspect nobody", "node nobody not found"),
        ("node demote swarm-manager", "the last manager of the swarm"),
        ("node rm swarm-worker2", "is not down"),
        ("node rm swarm-manager", "must be demoted"),
        ("node ls --filter colour=red", "invalid filter 'colour'"),
        ("debug nobody tools -- ls", "node nobody not found"),
        ("logs nothing", "container nothing not found"),
        ("service logs nothing", "task nothing not found"),
    ];
    for (arguments, wanted) in cases {
        let (result, _, _) = run(node, arguments).await;
        let error = result.expect_err(arguments);
        assert!(error.contains(wanted), "{arguments}: {error}");
        assert!(!error.contains('\n'), "{arguments}: {error}");
    }
}

#[tokio::test]
async fn only_an_operator_is_let_in() {
    let folder = scratch("cli-tls");
    let config = certificates(&folder);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_settings, receiver) = watch::channel(Some(Arc::new(config)));
    let api = router(memory::management());
    tokio::spawn(listener::serve_tls(listener, receiver, api));
    let host = || Host::Tcp("127.0.0.1".to_owned(), port);
    let operator = Engine::new(host(), Some(&folder.join("admin"))).unwrap();
    shows(&operator, "version", &["API version:"]).await;
    let node = Engine::new(host(), Some(&folder.join("node"))).unwrap();
    let (result, _, _) = run(&node, "version").await;
    let error = result.unwrap_err();
    assert!(!error.contains('\n') && error.len() > 20, "{error}");
    let nowhere = Engine::new(host(), Some(&folder)).err().unwrap();
    assert!(format!("{nowhere:#}").contains("ca.pem"), "{nowhere:#}");
    let nothing = Engine::new(host(), None).err().unwrap();
    assert!(nothing.to_string().contains("--certs"), "{nothing}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn wrong_usage_is_told_apart() {
    for wrong in [
        "skep",
        "skep service",
        "skep service create",
        "skep swarm join-token nobody",
        "skep node ls --format {{.ID}}",
    ] {
        assert!(Cli::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
    }
    let debug = Cli::try_parse_from(["skep", "debug", "node1", "tools", "--", "ls", "-l"]);
    assert!(debug.is_ok(), "{debug:?}");
}
