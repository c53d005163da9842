//! A running swarm as the tests see it: the clients, the API, the ports, and a look into a node by `skep debug`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::api;
use crate::cluster::Cluster;
use crate::commands::{skep_command, who_answers};
use crate::docker::Release;
use crate::images::TOOLS;
use crate::paths::Paths;
use crate::process::{Outcome, run_within};
use crate::vm::Vm;

/// Longest run of one command against an emulated, busy node.
pub const COMMAND_PATIENCE: Duration = Duration::from_secs(120);
/// How long the swarm may take to come to what it was told, emulated.
pub const CONVERGENCE: Duration = Duration::from_secs(90);

/// Asks again until it is so, at most for `patience`.
///
/// # Errors
/// The last failure.
pub fn eventually<T>(patience: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(value) => return Ok(value),
            Err(error) if begun.elapsed() > patience => {
                return Err(error)
                    .with_context(|| format!("not so after {} s", patience.as_secs()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// A task as the API gives it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// Its slot.
    pub slot: u64,
    /// The node's name.
    pub node: String,
    /// Its container's id, once there is one.
    pub container: String,
    /// Docker's word for what it does.
    pub state: String,
    /// Docker's word for what it should do.
    pub desired: String,
    /// Why it failed.
    pub error: String,
    /// Its address on each network, without the prefix length, by the network's name.
    pub addresses: Vec<(String, String)>,
}

impl Task {
    /// Its address on a network.
    pub fn address(&self, network: &str) -> Result<&str> {
        let on = |(name, _): &&(String, String)| name == network;
        let (_, address) = self
            .addresses
            .iter()
            .find(on)
            .with_context(|| format!("task {} has no address on {network}", self.id))?;
        Ok(address)
    }

    /// What its container calls itself: the first twelve digits of the container's id.
    pub fn hostname(&self) -> &str {
        self.container.get(..12).unwrap_or(&self.container)
    }

    /// The path of its network namespace on the node.
    pub fn namespace(&self) -> String {
        format!("/run/skep/netns/{}", self.hostname())
    }
}

/// A running swarm.
#[derive(Clone, Copy)]
pub struct Swarm<'a> {
    /// The lab.
    pub paths: &'a Paths,
    /// The machines.
    pub cluster: &'a Cluster,
}

impl Swarm<'_> {
    /// The first manager's name.
    pub fn manager(&self) -> &str {
        &self.cluster.manager().name
    }

    /// The stock docker client of Debian 13 on the manager; what it writes to standard output.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.docker_on(Release::Trixie, self.manager(), arguments)?
            .good(&format!("docker {}", arguments.join(" ")))
    }

    /// A stock docker client on a node.
    pub fn docker_on(&self, release: Release, node: &str, arguments: &[&str]) -> Result<Outcome> {
        let mut command = self.cluster.docker(self.paths, release, node)?;
        run_within(command.args(arguments), COMMAND_PATIENCE)
    }

    /// What docker says when it refuses: one line that must not be empty, with a status that is not zero.
    pub fn refused(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.docker_on(Release::Trixie, self.manager(), arguments)?;
        refusal(&outcome, &format!("docker {}", arguments.join(" ")))
    }

    /// skep, from this machine, on a node.
    pub fn skep(&self, node: &str, arguments: &[&str]) -> Result<Outcome> {
        let mut command = skep_command(self.paths, self.cluster, node)?;
        run_within(command.args(arguments), COMMAND_PATIENCE)
    }

    /// Runs a shell script in the tools image on a node, in the node's own namespaces.
    pub fn debug(&self, node: &str, script: &str) -> Result<String> {
        self.debug_outcome(node, script)?
            .good(&format!("on {node}: {script}"))
    }

    /// The same, also when the script fails.
    pub fn debug_outcome(&self, node: &str, script: &str) -> Result<Outcome> {
        self.skep(node, &["debug", TOOLS, "--", "sh", "-c", script])
    }

    /// What a node's journal says since it booted.
    pub fn journal(&self, node: &str, options: &str) -> Result<String> {
        let read =
            format!("journalctl --no-pager --quiet --boot {options} --directory /proc/1/root");
        self.debug(
            node,
            &format!("{read}/var/log/journal || {read}/run/log/journal"),
        )
    }

    /// The script in the network namespace of a task.
    pub fn inside(&self, task: &Task, script: &str) -> Result<String> {
        self.debug(&task.node, &in_namespace(&task.namespace(), script))
    }

    /// A GET to the management API of the manager.
    pub fn api(&self, path: &str) -> Result<Value> {
        api::json(&self.cluster.api(self.manager())?, path)
    }

    /// One answer of a published port on a node, from outside.
    pub fn get(&self, node: &str, port: u16) -> Result<String> {
        who_answers(self.cluster.vm(node)?.forward(false, port)?)
    }

    /// All tasks of a service, newest first.
    pub fn tasks(&self, service: &str) -> Result<Vec<Task>> {
        let nodes = self.api("/nodes")?;
        let name_of = |id: &str| {
            let listed = nodes.as_array().into_iter().flatten();
            let mut named = listed.filter(|node| node["ID"] == id);
            let name = named
                .next()
                .and_then(|node| node.pointer("/Description/Hostname")?.as_str());
            name.unwrap_or_default().to_owned()
        };
        let filters = format!("%7B%22service%22%3A%5B%22{service}%22%5D%7D");
        let list = self.api(&format!("/tasks?filters={filters}"))?;
        let mut rows: Vec<&Value> = list
            .as_array()
            .context("/tasks answers no list")?
            .iter()
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row["CreatedAt"].as_str()));
        Ok(rows
            .into_iter()
            .map(|row| read_task(row, &name_of))
            .collect())
    }

    /// The tasks of a service that run and should run.
    pub fn running(&self, service: &str) -> Result<Vec<Task>> {
        let mut tasks = self.tasks(service)?;
        tasks.retain(|task| task.state == "running" && task.desired == "running");
        Ok(tasks)
    }

    /// Waits until exactly so many tasks of a service run, and gives them.
    pub fn wait_running(&self, service: &str, count: usize) -> Result<Vec<Task>> {
        eventually(CONVERGENCE, || {
            let running = self.running(service)?;
            if running.len() == count {
                return Ok(running);
            }
            let all: Vec<String> = self
                .tasks(service)?
                .iter()
                .map(|t| {
                    format!(
                        "{}.{} on {:?}: {} (wants {}) {}",
                        service, t.slot, t.node, t.state, t.desired, t.error
                    )
                })
                .collect();
            bail!(
                "{} of {count} tasks of {service} run: {}",
                running.len(),
                all.join("; ")
            )
        })
    }

    /// Creates a service without waiting for it, and then waits until its tasks run.
    pub fn create(&self, name: &str, count: usize, arguments: &[&str]) -> Result<Vec<Task>> {
        let replicas = count.to_string();
        let head = [
            "service",
            "create",
            "--detach",
            "--name",
            name,
            "--replicas",
            &replicas,
        ];
        self.docker(&[&head[..], arguments].concat())?;
        self.wait_running(name, count)
    }

    /// A service's virtual address on a network, without the prefix length.
    pub fn vip(&self, service: &str, network: &str) -> Result<String> {
        let id = self.network_id(network)?;
        let inspected = self.api(&format!("/services/{service}"))?;
        let vips = inspected
            .pointer("/Endpoint/VirtualIPs")
            .and_then(Value::as_array);
        let vip = vips
            .into_iter()
            .flatten()
            .find(|vip| vip["NetworkID"] == id.as_str())
            .and_then(|vip| vip["Addr"].as_str())
            .with_context(|| format!("{service} has no VIP on {network}"))?;
        Ok(without_prefix(vip).to_owned())
    }

    /// A network's id.
    pub fn network_id(&self, network: &str) -> Result<String> {
        let inspected = self.api(&format!("/networks/{network}"))?;
        let id = inspected["Id"]
            .as_str()
            .with_context(|| format!("no network {network}"))?;
        Ok(id.to_owned())
    }

    /// The token with which workers join now.
    pub fn worker_token(&self) -> Result<String> {
        let token = self.docker(&["swarm", "join-token", "--quiet", "worker"])?;
        Ok(token.trim().to_owned())
    }

    /// Boots a worker from an empty disk, with the token of now and then with other settings; what is written down of
    /// it stays as it was.
    pub fn boot_changed(
        &self,
        name: &str,
        change: impl FnOnce(&mut Vm) -> Result<()>,
    ) -> Result<Vm> {
        let original = self.cluster.vm(name)?;
        let mut vm = original.clone();
        vm.set_credential("skep.join", &self.join_with(&self.worker_token()?));
        change(&mut vm)?;
        vm.make_disk()?;
        fs::write(vm.console_file(), "")?;
        vm.save()?;
        let booted = vm.power_on();
        original.save()?;
        booted.map(|()| vm)
    }

    /// The value of `skep.join` with this token.
    pub fn join_with(&self, token: &str) -> String {
        format!("{token}@{}:2377", self.cluster.manager().address())
    }

    /// A node without a task among these.
    pub fn node_without(&self, tasks: &[Task], of: &[&str]) -> Result<String> {
        let free = |name: &&&str| !tasks.iter().any(|task| task.node == **name);
        let name = of.iter().find(free).context("every node has a task")?;
        Ok((*name).to_owned())
    }
}

/// A script in a network namespace of the node.
pub fn in_namespace(namespace: &str, script: &str) -> String {
    format!(
        "nsenter --net={namespace} sh -c '{}'",
        script.replace('\'', r"'\''")
    )
}

/// The one line of a command that had to fail.
pub fn refusal(outcome: &Outcome, name: &str) -> Result<String> {
    match outcome.status {
        Some(0) => bail!("{name} was accepted: {}", outcome.stdout.trim()),
        None => bail!("{name} was ended by a signal"),
        Some(_) => {}
    }
    let said = outcome.stderr.trim();
    if said.is_empty() {
        bail!("{name} fails and says nothing");
    }
    Ok(said.to_owned())
}

/// Fails with what was found unless all of these are in it.
pub fn must_contain(text: &str, wanted: &[&str]) -> Result<()> {
    match wanted.iter().find(|part| !text.contains(**part)) {
        None => Ok(()),
        Some(part) => bail!("{part:?} is not in: {}", text.trim()),
    }
}

fn read_task(row: &Value, name_of: &dyn Fn(&str) -> String) -> Task {
    let text = |pointer: &str| {
        row.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let attachments = row["NetworksAttachments"].as_array().into_iter().flatten();
    let addresses = attachments.filter_map(|attachment| {
        let network = attachment.pointer("/Network/Spec/Name")?.as_str()?;
        let address = attachment.pointer("/Addresses/0")?.as_str()?;
        Some((network.to_owned(), without_prefix(address).to_owned()))
    });
    Task {
        id: text("/ID"),
        slot: row["Slot"].as_u64().unwrap_or_default(),
        node: name_of(&text("/NodeID")),
        container: text("/Status/ContainerStatus/ContainerID"),
        state: text("/Status/State"),
        desired: text("/DesiredState"),
        error: text("/Status/Err"),
        addresses: addresses.collect(),
    }
}

fn without_prefix(address: &str) -> &str {
    address.split('/').next().unwrap_or(address)
}
