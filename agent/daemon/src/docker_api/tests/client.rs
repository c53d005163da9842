//! The stock `docker` client against the Engine API, over a Unix socket and over mutual TLS. Which
//! clients is said by `SKEP_DOCKER`, paths joined by colons, such as those of Debian 12 (20.10) and
//! Debian 13 (26.1), unpacked from their packages.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use skep_core::wire::unlock::UnlockKey;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use super::{
    super::{listener, router},
    certificates::certificates,
    scratch,
};
use crate::management::memory;

/// A client and how it reaches the API.
struct Client {
    program: PathBuf,
    arguments: Vec<String>,
    home: PathBuf,
}

impl Client {
    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(arguments.split_whitespace())
            .env_clear()
            .env("HOME", &self.home);
        command
    }

    /// Runs a command that is given a line of input.
    fn run_with(&self, arguments: &str, line: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{line}").unwrap();
        drop(input);
        child.wait_with_output().unwrap()
    }

    /// Runs a command that must succeed; its standard output.
    fn ok(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {errors}{text}");
        println!("$ docker {arguments}\n{text}{errors}");
        text
    }

    /// Runs a command that must fail; its standard error.
    fn fails(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments} did not fail");
        println!("$ docker {arguments}\n{errors}");
        errors
    }

    /// A command whose output has each of these texts.
    fn shows(&self, arguments: &str, wanted: &[&str]) -> String {
        let text = self.ok(arguments);
        for wanted in wanted {
            assert!(
                text.contains(wanted),
                "{arguments}: no {wanted:?} in\n{text}"
            );
        }
        text
    }
}

fn clients() -> Vec<PathBuf> {
    let paths = std::env::var_os("SKEP_DOCKER").expect("SKEP_DOCKER names the docker clients");
    std::env::split_paths(&paths).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker clients: SKEP_DOCKER=/path/docker:/other/docker"]
async fn the_stock_client_drives_a_swarm() {
    for program in clients() {
        let home = scratch("client");
        let socket = home.join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = tokio::spawn(listener::serve_unix(listener, router(memory::management())));
        let client = Client {
            program,
            arguments: vec!["-H".to_owned(), format!("unix://{}", socket.display())],
            home: home.clone(),
        };
        tokio::task::spawn_blocking(move || walk_through(&client))
            .await
            .unwrap();
        serving.abort();
        std::fs::remove_dir_all(home).unwrap();
    }
}

fn walk_through(client: &Client) {
    nodes(client);
    networks(client);
    services(client);
    modes(client);
    dependencies(client);
    errors(client);
}

fn lock(client: &Client) {
    let none = client.fails("swarm unlock-key");
    assert!(none.contains("no unlock key is set"), "{none}");
    let updated = client.shows(
        "swarm update --autolock=true",
        &["Swarm updated.", "SWMKEY-1-"],
    );
    let key = client.ok("swarm unlock-key -q");
    assert!(updated.contains(key.trim()), "{updated}");
    client.shows("swarm unlock-key --rotate", &["Successfully rotated"]);
    assert_ne!(client.ok("swarm unlock-key -q"), key);
    client.ok("swarm update --autolock=false");
    client.fails("swarm unlock-key --rotate");
    let open = client.fails("swarm unlock");
    assert!(open.contains("swarm is not locked"), "{open}");
}

fn nodes(client: &Client) {
    client.shows("version", &["Engine", "1.45", "minimum version 1.24"]);
    client.shows("info", &["Swarm: inactive"]);
    let join = "swarm join --token SWMTKN-1-";
    client.shows(
        "swarm init --advertise-addr 192.168.77.11",
        &["is now a manager", join, "192.168.77.11:2377"],
    );
    client.shows(
        "info",
        &[
            "Swarm: active",
            "Is Manager: true",
            "Nodes: 3",
            "Data Path Port: 4789",
            "Heartbeat Period: 5 seconds",
            "Expiry Duration: 3 months",
        ],
    );
    let worker = client.ok("swarm join-token -q worker");
    assert_ne!(worker, client.ok("swarm join-token -q manager"));
    client.shows("swarm join-token worker", &[join]);
    client.ok("swarm join-token --rotate worker");
    assert_ne!(worker, client.ok("swarm join-token -q worker"));
    lock(client);
    let list = client.shows("node ls", &["swarm-worker2", "Ready", "Active", "Leader"]);
    assert_eq!(list.matches(" * ").count(), 1);
    client.shows(
        "node inspect swarm-worker1 --format {{.Status.Addr}}",
        &["192.168.77.21"],
    );
    client.shows(
        "node inspect --pretty self",
        &["Hostname:", "swarm-manager", "Raft Status"],
    );
}

fn networks(client: &Client) {
    let list = client.ok("network ls --format {{.Name}}/{{.Driver}}/{{.Scope}}");
    let wanted = [
        "bridge/bridge/local",
        "docker_gwbridge/bridge/local",
        "host/host/local",
        "ingress/overlay/swarm",
        "none/null/local",
    ];
    for wanted in wanted {
        assert!(
            list.lines().any(|line| line == wanted),
            "{wanted} in {list}"
        );
    }
    client.ok("network create -d overlay my-demo");
    client.ok("network create -d overlay --subnet 192.168.10.0/24 my-net");
    client.shows(
        "network inspect my-net",
        &["\"Subnet\": \"192.168.10.0/24\"", "\"Scope\": \"swarm\""],
    );
    client.shows("network inspect -v my-demo", &["\"Driver\": \"overlay\""]);
    client.ok("network rm my-net");
    client.fails("network inspect my-net");
}

fn services(client: &Client) {
    client.shows(
        "service create --detach=false --name whoami --network my-demo --replicas 3 -p 8000:8000 whoami",
        &["overall progress: 3 out of 3 tasks", "verify: Service ", "converged"],
    );
    client.ok("service create --detach --name client --network my-demo busybox sleep 100000");
    client.shows(
        "service ls",
        &[
            "whoami",
            "replicated",
            "3/3",
            "whoami:latest",
            "*:8000->8000/tcp",
        ],
    );
    client.shows("service ps whoami", &["whoami.1", "whoami.3", "Running"]);
    client.shows(
        "service inspect whoami",
        &["VirtualIPs", "10.255.0.", "/16", "StopGracePeriod"],
    );
    client.shows(
        "service inspect --pretty whoami",
        &["Replicas:", "PublishedPort = 8000", "Networks: my-demo"],
    );
    client.ok("service scale --detach whoami=2 client=2");
    client.shows(
        "service update --detach=false --publish-add 8080:8000 whoami",
        &["verify: Service ", "converged"],
    );
    client.shows(
        "service ls --filter name=whoami",
        &["2/2", "*:8080->8000/tcp"],
    );
    client.shows("service ps whoami", &[" \\_ whoami.1", "Shutdown"]);
    client.shows(
        "service logs --timestamps whoami",
        &[
            "whoami.1.",
            "@swarm-",
            "    | I'm slot 1",
            "2023-11-14T22:13:20",
        ],
    );
    client.shows("service logs --raw --tail 1 whoami", &["I'm slot 2\n"]);
    client.shows("ps --format {{.Names}}", &["."]);
    client.shows("inspect whoami --format {{.Spec.Name}}", &["whoami"]);
    client.shows("node ps swarm-manager", &["Running"]);
    client.shows("service rm whoami client", &["whoami", "client"]);
    assert_eq!(client.ok("service ls -q"), "");
}

fn modes(client: &Client) {
    client.shows(
        "service create --detach=false --mode global --name agent whoami",
        &[
            "overall progress: 3 out of 3 tasks",
            "verify: Service ",
            "converged",
        ],
    );
    client.shows(
        "service create --detach=false --mode replicated-job --replicas 4 --max-concurrent 2 --name sum whoami",
        // The client draws the bar of the whole job on terminals only.
        &["active tasks: 0 out of 0 tasks", "job complete"],
    );
    client.shows(
        "service create --detach=false --mode global-job --name scan whoami",
        &["job complete"],
    );
    client.shows(
        "service ls",
        &[
            "global",
            "3/3",
            "replicated job",
            "0/2 (4/4 completed)",
            "0/0 (3/3 completed)",
        ],
    );
    client.shows("service inspect --pretty agent", &["Global"]);
    // The older client has no word for the mode of a job.
    client.shows("service inspect --pretty sum", &["Name:\t\tsum"]);
    let refused = client.fails("service scale agent=2");
    assert!(
        refused.contains("scale can only be used with replicated"),
        "{refused}"
    );
    client.shows("service rm agent sum scan", &["agent", "scan"]);
}

fn dependencies(client: &Client) {
    let file = client.home.join("content");
    std::fs::write(&file, "canary-5e1f").unwrap();
    let file = file.display();
    for kind in ["secret", "config"] {
        let id = client.ok(&format!("{kind} create -l tier=data db-1 {file}"));
        assert_eq!(id.trim().len(), 25, "{id}");
        client.ok(&format!("{kind} create db-2 {file}"));
        client.shows(
            &format!("{kind} ls"),
            &["ID", "NAME", "CREATED", "db-1", " ago"],
        );
        let listed = client.ok(&format!("{kind} ls -q --filter label=tier"));
        assert_eq!(listed, id);
        let name = format!("{kind} inspect --format {{{{.Spec.Name}}}} db-1");
        assert_eq!(client.ok(&name), "db-1\n");
        let shown = client.ok(&format!("{kind} inspect db-1"));
        assert_eq!(
            shown.contains("Y2FuYXJ5LTVlMWY="),
            kind == "config",
            "{shown}"
        );
        assert!(!shown.contains("canary"), "{shown}");
        let again = client.fails(&format!("{kind} create db-1 {file}"));
        assert!(
            again.contains(&format!("{kind} db-1 already exists")),
            "{again}"
        );
        let templating = client.fails(&format!("{kind} create --template-driver golang x {file}"));
        assert!(templating.contains("Templating"), "{templating}");
    }
    client.ok(
        "service create --detach --name user --secret source=db-1,target=db,uid=33,gid=34,mode=0400 \
         --config source=db-1,target=/etc/db.conf whoami",
    );
    client.shows(
        "service inspect user",
        &[
            "\"Name\": \"db\"",
            "\"UID\": \"33\"",
            "\"Mode\": 256",
            "\"SecretName\": \"db-1\"",
            "\"ConfigName\": \"db-1\"",
        ],
    );
    for kind in ["secret", "config"] {
        let error = client.fails(&format!("{kind} rm db-1"));
        let words = format!("{kind} 'db-1' is in use by the following service: user");
        assert!(error.contains(&words), "{error}");
    }
    client.ok("service update --detach --secret-rm db-1 --secret-add source=db-2,target=db --config-rm db-1 user");
    client.shows("secret rm db-1", &["db-1"]);
    client.shows("config rm db-1 db-2", &["db-1", "db-2"]);
    client.shows("inspect db-2 --format {{.Spec.Name}}", &["db-2"]);
    client.ok("service rm user");
    client.ok("secret rm db-2");
}

fn errors(client: &Client) {
    let cases = [
        (
            "swarm init --advertise-addr 192.168.77.11",
            "already part of a swarm",
        ),
        ("swarm leave", "manager"),
        (
            "service create --detach --name a --secret x whoami",
            "secret not found: x",
        ),
        (
            "service create --detach --name a --config x whoami",
            "config not found: x",
        ),
        ("service inspect nothing", "no such service: nothing"),
        ("network rm host", "host"),
        ("inspect nothing", "No such object: nothing"),
        ("run whoami", "not supported by Skep yet"),
        ("volume ls", "not supported by Skep yet"),
    ];
    for (arguments, wanted) in cases {
        let text = client.fails(arguments);
        assert!(
            text.to_lowercase().contains(&wanted.to_lowercase()),
            "{arguments}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker clients: SKEP_DOCKER=/path/docker:/other/docker"]
async fn the_stock_client_unlocks_a_manager() {
    for program in clients() {
        let home = scratch("unlock");
        let socket = home.join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (management, key) = memory::locked();
        let serving = tokio::spawn(listener::serve_unix(listener, router(management)));
        let client = Client {
            program,
            arguments: vec!["-H".to_owned(), format!("unix://{}", socket.display())],
            home: home.clone(),
        };
        tokio::task::spawn_blocking(move || {
            client.shows("info", &["Swarm: locked"]);
            let refused = client.fails("node ls");
            assert!(refused.contains("needs to be unlocked"), "{refused}");
            let wrong = UnlockKey::new([1; 32]);
            let refused = client.run_with("swarm unlock", &wrong.text());
            let errors = String::from_utf8(refused.stderr).unwrap();
            assert!(errors.contains("invalid key provided"), "{errors}");
            let done = client.run_with("swarm unlock", &key.text());
            assert!(done.status.success(), "{done:?}");
            client.shows("node ls", &["Leader"]);
        })
        .await
        .unwrap();
        serving.abort();
        std::fs::remove_dir_all(home).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker clients: SKEP_DOCKER=/path/docker:/other/docker"]
async fn only_operators_get_in_by_tls() {
    let home = scratch("tls");
    let config = certificates(&home);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_settings, receiver) = watch::channel(Some(Arc::new(config)));
    tokio::spawn(listener::serve_tls(
        listener,
        receiver,
        router(memory::management()),
    ));
    for program in clients() {
        let client = |certificate: &str| {
            let folder = home.join(certificate);
            let file = |name: &str| folder.join(name).display().to_string();
            let arguments = vec![
                format!("--host=tcp://127.0.0.1:{port}"),
                "--tlsverify".to_owned(),
                format!("--tlscacert={}", file("ca.pem")),
                format!("--tlscert={}", file("cert.pem")),
                format!("--tlskey={}", file("key.pem")),
            ];
            Client {
                program: program.clone(),
                arguments,
                home: home.clone(),
            }
        };
        let (admin, node) = (client("admin"), client("node"));
        tokio::task::spawn_blocking(move || {
            admin.shows("version", &["API version:"]);
            let error = node.fails("version");
            assert!(error.contains("certificate"), "{error}");
        })
        .await
        .unwrap();
    }
    std::fs::remove_dir_all(home).unwrap();
}
