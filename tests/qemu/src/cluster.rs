//! A swarm of VMs: its nodes, what they boot, and their power and links.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::generated::{Generated, Part};
use crate::http::Client;
use crate::image::Image;
use crate::paths::{Paths, write_atomically};
use crate::process::{Background, Signal, run};
use crate::progress::say;
use crate::registry::Registry;
use crate::vm::{API_PORT, Accelerator, Boot, Forward, Vm, free_port};
use crate::{api, docker, switch};

/// How many nodes a cluster may have: their numbers fit below the switch's and the operator's addresses.
pub const NODES_MAX: u8 = 20;

const MEMORY_MIB: u32 = 768;
const DISK_GIB: u64 = 6;

/// Whether a node manages the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It runs the control plane.
    Manager,
    /// It only runs tasks.
    Worker,
}

/// A node's place in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Last byte of its address on the segment.
    pub number: u8,
}

impl Place {
    /// Its address on the segment.
    pub fn address(&self) -> String {
        format!("192.168.77.{}", self.number)
    }
}

/// The names and addresses of `nodes` nodes of which the first `managers` are managers.
pub fn places(nodes: u8, managers: u8) -> Result<Vec<Place>> {
    if nodes == 0 || nodes > NODES_MAX {
        bail!("--nodes {nodes}: a cluster has 1 to {NODES_MAX} nodes");
    }
    if managers == 0 || managers > nodes {
        bail!("--managers {managers}: of {nodes} nodes, 1 to {nodes} are managers");
    }
    let manager = |index: u8| Place {
        name: match index {
            1 => "swarm-manager".to_owned(),
            _ => format!("swarm-manager{index}"),
        },
        role: Role::Manager,
        number: 10 + index,
    };
    // Managers end at .30 at most, so more than ten of them push the workers up.
    let first_worker = 20.max(10 + managers);
    let worker = |index: u8| Place {
        name: format!("swarm-worker{index}"),
        role: Role::Worker,
        number: first_worker + index,
    };
    let workers = (1..=nodes - managers).map(worker);
    Ok((1..=managers).map(manager).chain(workers).collect())
}

/// What a new cluster is made of.
pub struct Plan<'a> {
    /// Its nodes.
    pub places: Vec<Place>,
    /// What they boot.
    pub image: &'a Image,
    /// How their code runs.
    pub accelerator: Accelerator,
    /// Where they get container images.
    pub registry: &'a Registry,
    /// The command line program, for `gen swarm`.
    pub skep: PathBuf,
}

/// A cluster and its folder.
pub struct Cluster {
    /// Everything about it lies here.
    pub folder: PathBuf,
    places: Vec<Place>,
}

impl Cluster {
    fn folder_of(paths: &Paths, name: &str) -> Result<PathBuf> {
        Ok(paths.folder("clusters")?.join(name))
    }

    /// The cluster of this name, if there is one.
    pub fn find(paths: &Paths, name: &str) -> Result<Option<Cluster>> {
        let folder = Cluster::folder_of(paths, name)?;
        let Ok(text) = fs::read(folder.join("cluster.json")) else {
            return Ok(None);
        };
        let places = serde_json::from_slice(&text)
            .with_context(|| format!("{}/cluster.json is damaged", folder.display()))?;
        Ok(Some(Cluster { folder, places }))
    }

    /// Sets a new cluster up; nothing runs yet.
    pub fn create(paths: &Paths, name: &str, plan: &Plan<'_>) -> Result<Cluster> {
        let folder = Cluster::folder_of(paths, name)?;
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder.join("switch"))?;
        let first = plan.places.first().context("a cluster without nodes")?;
        let generated = Generated::make(&plan.skep, folder.join("swarm"), &first.address())?;
        let cluster = Cluster {
            folder,
            places: plan.places.clone(),
        };
        let image = cluster.keep_image(plan.image)?;
        for place in &plan.places {
            cluster.set_up(place, &image, &generated, plan)?;
        }
        // Last: a cluster that is only half set up is none.
        let list = serde_json::to_vec_pretty(&cluster.places)?;
        write_atomically(&cluster.folder.join("cluster.json"), &list)?;
        Ok(cluster)
    }

    /// Copies the image, so that a later build does not change the disks under running nodes.
    fn keep_image(&self, image: &Image) -> Result<Image> {
        let folder = self.folder.join("image");
        fs::create_dir_all(&folder)?;
        let keep = |from: &PathBuf, name: &str| -> Result<PathBuf> {
            let to = folder.join(name);
            run(Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .args([from, &to]))?;
            Ok(to)
        };
        Ok(Image {
            kernel: keep(&image.kernel, "kernel")?,
            initrd: keep(&image.initrd, "initrd")?,
            disk: keep(&image.disk, "disk.raw")?,
            ..image.clone()
        })
    }

    fn set_up(
        &self,
        place: &Place,
        image: &Image,
        generated: &Generated,
        plan: &Plan<'_>,
    ) -> Result<()> {
        let first = self.places.first().is_some_and(|first| first == place);
        let part = match (place.role, first) {
            (Role::Manager, true) => Part::FirstManager,
            (Role::Manager, false) => Part::Manager,
            (Role::Worker, _) => Part::Worker,
        };
        let registry = plan.registry.address_for_nodes();
        let address = place.address();
        let cmdline = [
            image.cmdline.clone(),
            addresses(place.number),
            generated.cmdline(part)?,
            format!("skep.name={} skep.advertise={address}", place.name),
            format!("skep.registry.mirror={registry} skep.registry.insecure={registry}"),
            // Warnings show on the console, where the tests look for them. An emulated machine on a busy host stalls
            // without anything being wrong.
            "loglevel=5 systemd.tty.term.console=dumb systemd.tty.term.ttyS0=dumb".to_owned(),
            "rcupdate.rcu_cpu_stall_suppress=1".to_owned(),
        ]
        .join(" ");
        let vm = Vm {
            name: place.name.clone(),
            folder: self.node_folder(&place.name),
            number: place.number,
            uuid_of: place.number,
            memory: MEMORY_MIB,
            cpus: 1,
            disk_gib: DISK_GIB,
            accelerator: plan.accelerator,
            boot: Boot {
                kernel: image.kernel.clone(),
                initrd: image.initrd.clone(),
                cmdline,
                disk: Some(image.disk.clone()),
                credentials: generated.credentials(part)?,
            },
            once: false,
            forwards: vec![Forward {
                udp: false,
                host: free_port()?,
                guest: API_PORT,
            }],
        };
        vm.save()?;
        vm.make_disk()
    }

    fn node_folder(&self, name: &str) -> PathBuf {
        self.folder.join("nodes").join(name)
    }

    /// Its nodes, managers first.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The first manager.
    pub fn manager(&self) -> &Place {
        &self.places[0]
    }

    /// A node by name.
    pub fn place(&self, name: &str) -> Result<&Place> {
        self.places
            .iter()
            .find(|place| place.name == name)
            .with_context(|| {
                let names: Vec<&str> = self.places.iter().map(|p| p.name.as_str()).collect();
                format!("no node {name:?}; there are: {}", names.join(", "))
            })
    }

    /// A node's VM by name.
    pub fn vm(&self, name: &str) -> Result<Vm> {
        Vm::load(&self.node_folder(&self.place(name)?.name))
    }

    /// The operator's certificates.
    pub fn certs(&self) -> PathBuf {
        Generated::at(self.folder.join("swarm")).operator()
    }

    /// A client of a node's management API.
    pub fn api(&self, name: &str) -> Result<Client> {
        let port = self
            .vm(name)?
            .api_port()
            .context("a node without an API port")?;
        api::client(port, &self.certs())
    }

    /// The stock docker client, set up for a node.
    pub fn docker(&self, paths: &Paths, release: docker::Release, name: &str) -> Result<Command> {
        let port = self
            .vm(name)?
            .api_port()
            .context("a node without an API port")?;
        docker::command(paths, release, port, &self.certs())
    }

    fn switch_folder(&self) -> PathBuf {
        self.folder.join("switch")
    }

    fn switch_process(&self) -> Background {
        Background::at(self.switch_folder().join("pid"))
    }

    /// Starts the switch if it does not run.
    pub fn start_switch(&self) -> Result<()> {
        let names: Vec<String> = self.places.iter().map(|place| place.name.clone()).collect();
        switch::start(&self.switch_folder(), &self.switch_process(), &names)
    }

    /// Turns these nodes on, all at the same moment; those that are on already stay as they are.
    pub fn power_on(&self, places: &[Place]) -> Result<()> {
        self.start_switch()?;
        std::thread::scope(|scope| {
            let boot = |place: &Place| self.vm(&place.name)?.power_on();
            let starts: Vec<_> = places
                .iter()
                .map(|p| scope.spawn(move || boot(p)))
                .collect();
            starts
                .into_iter()
                .try_for_each(|start| start.join().unwrap_or_else(|_| bail!("a start panicked")))
        })
    }

    /// Lets paused nodes go on and heals the links that were cut.
    pub fn undo_harm(&self, places: &[Place]) -> Result<()> {
        for place in places {
            let vm = self.vm(&place.name)?;
            if vm.paused() {
                vm.resume()?;
            }
            self.set_link(&place.name, true)?;
        }
        Ok(())
    }

    /// Ends all its processes and removes it.
    pub fn down(self) -> Result<()> {
        self.power_off()?;
        fs::remove_dir_all(&self.folder)
            .with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    /// Ends all its processes; its files stay.
    pub fn power_off(&self) -> Result<()> {
        for place in &self.places {
            self.vm(&place.name)?.power_cut()?;
        }
        self.switch_process()
            .stop(Signal::Terminate, Duration::from_secs(5))
    }

    /// Cuts or heals a node's link to the segment.
    pub fn set_link(&self, name: &str, up: bool) -> Result<()> {
        let verb = if up { "heal" } else { "cut" };
        let place = self.place(name)?;
        switch::control(&self.switch_folder(), &format!("{verb} {}", place.name)).map(drop)
    }

    /// The switch's ports.
    pub fn ports(&self) -> Result<Vec<switch::PortStatus>> {
        let text = switch::control(&self.switch_folder(), "ports")?;
        serde_json::from_str(&text).context("the switch answers no JSON")
    }

    /// Waits until the first manager that answers lists these nodes as ready.
    ///
    /// # Errors
    /// After `patience`, with what is missing and the last lines of the consoles that matter.
    pub fn wait_ready(&self, places: &[Place], patience: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut ready: Vec<String> = Vec::new();
        loop {
            for name in self.ready_nodes().unwrap_or_default() {
                if !ready.contains(&name) {
                    let seconds = begun.elapsed().as_secs_f32();
                    if seconds > 1.0 {
                        say(&format!("{name} is Ready after {seconds:.1} s"));
                    }
                    ready.push(name);
                }
            }
            let missing: Vec<&Place> = places
                .iter()
                .filter(|place| !ready.contains(&place.name))
                .collect();
            let Some(first) = missing.first() else {
                return Ok(());
            };
            let off = missing
                .iter()
                .find(|p| self.vm(&p.name).is_ok_and(|vm| !vm.running()));
            if let Some(off) = off {
                bail!(
                    "{} turned off while it booted:\n{}",
                    off.name,
                    self.tail(&off.name)
                );
            }
            if begun.elapsed() > patience {
                let names: Vec<&str> = missing.iter().map(|place| place.name.as_str()).collect();
                bail!(
                    "not Ready after {} s: {}; the console of {} ends with:\n{}",
                    patience.as_secs(),
                    names.join(", "),
                    first.name,
                    self.tail(&first.name)
                );
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    fn tail(&self, name: &str) -> String {
        self.vm(name)
            .map(|vm| vm.console_tail(8))
            .unwrap_or_default()
    }

    /// The names of the nodes that a manager lists as ready.
    pub fn ready_nodes(&self) -> Result<Vec<String>> {
        let managers = self
            .places
            .iter()
            .filter(|place| place.role == Role::Manager);
        let mut last = None;
        for manager in managers {
            match self
                .api(&manager.name)
                .and_then(|client| api::nodes(&client))
            {
                Ok(nodes) => {
                    let ready = nodes.into_iter().filter(|node| node.state == "ready");
                    return Ok(ready.map(|node| node.name).collect());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("a cluster without managers")?)
    }
}

/// The kernel's `ip=` words: the segment static, the way out by DHCP, each NIC by its MAC address.
fn addresses(number: u8) -> String {
    let nic = |segment: u8| format!("52-54-00-{segment:02x}-00-{number:02x}");
    format!(
        "ifname=segment:{} ip=192.168.77.{number}:::255.255.255.0::segment:none ifname=wayout:{} ip=wayout:dhcp",
        nic(0x77).replace('-', ":"),
        nic(0x76).replace('-', ":")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_come_first_and_nobody_shares_an_address() {
        let names = |n, m| -> Vec<(String, u8)> {
            places(n, m)
                .unwrap()
                .into_iter()
                .map(|p| (p.name, p.number))
                .collect()
        };
        assert_eq!(
            names(3, 1),
            [
                ("swarm-manager".into(), 11),
                ("swarm-worker1".into(), 21),
                ("swarm-worker2".into(), 22)
            ]
        );
        assert_eq!(names(3, 3)[2], ("swarm-manager3".into(), 13));
        let mut many: Vec<u8> = names(20, 15)
            .into_iter()
            .map(|(_, number)| number)
            .collect();
        many.dedup();
        assert_eq!(many.len(), 20);
        assert!(places(3, 4).is_err());
        assert!(places(21, 1).is_err());
    }
}
