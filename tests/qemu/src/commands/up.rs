//! `up`: from nothing to a swarm that answers.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::cli::Up;
use crate::cluster::{Cluster, Plan, Role, places};
use crate::commands::{DEFAULT, Mesh, answers_of_every_replica, lock, status_of};
use crate::generated::link_skep;
use crate::image::Image;
use crate::packages::{FOR_COMPILING, FOR_MACHINES, FOR_MKOSI, ensure_installed};
use crate::paths::Paths;
use crate::progress::{Step, say};
use crate::registry::Registry;
use crate::vm::Accelerator;
use crate::{accelerator, image, images};

/// An emulated three-node swarm on a busy two-core machine is Ready after about a minute.
pub const READY_PATIENCE: Duration = Duration::from_secs(420);
const MESH_PATIENCE: Duration = Duration::from_secs(240);

/// What every cluster needs: the image, the registry with its content, an accelerator, the command line program.
pub struct Prepared {
    /// The image.
    pub image: Image,
    /// The registry, running.
    pub registry: Registry,
    /// How guest code runs.
    pub accelerator: Accelerator,
    /// The command line program.
    pub skep: std::path::PathBuf,
}

impl Prepared {
    /// A plan for a cluster of `nodes` nodes.
    pub fn plan(&self, nodes: u8, managers: u8) -> Result<Plan<'_>> {
        Ok(Plan {
            places: places(nodes, managers)?,
            image: &self.image,
            accelerator: self.accelerator,
            registry: &self.registry,
            skep: self.skep.clone(),
        })
    }
}

/// Makes what every cluster needs, as far as it is not there yet.
pub fn prepare(paths: &Paths) -> Result<Prepared> {
    ensure_installed(&[FOR_MACHINES, FOR_COMPILING, FOR_MKOSI].concat())?;
    let registry = Registry::at(paths)?;
    registry.start(paths)?;
    images::ensure_pushed(paths, &registry)?;
    let image = image::build(&paths.repository, &say)?;
    Ok(Prepared {
        accelerator: accelerator::choose(paths, &image)?,
        skep: link_skep(paths)?,
        image,
        registry,
    })
}

/// `up`
pub fn up(paths: &Paths, options: &Up) -> Result<()> {
    let wanted = places(options.nodes, options.managers)?;
    let _lock = lock(paths)?;
    let cluster = match Cluster::find(paths, DEFAULT)? {
        Some(cluster) if cluster.places() == wanted => {
            Registry::at(paths)?.start(paths)?;
            cluster
        }
        Some(cluster) => bail!(
            "a swarm of {} nodes is there already; first: cargo lab down",
            cluster.places().len()
        ),
        None => {
            let prepared = prepare(paths)?;
            Cluster::create(
                paths,
                DEFAULT,
                &prepared.plan(options.nodes, options.managers)?,
            )?
        }
    };
    let step = Step::begin(format!("booting {} nodes", cluster.places().len()));
    cluster.power_on(cluster.places())?;
    cluster.undo_harm(cluster.places())?;
    cluster.wait_ready(cluster.places(), READY_PATIENCE)?;
    step.done();
    let step = Step::begin("making network my-demo and services client and whoami");
    let mesh = Mesh::make(paths, &cluster)?;
    step.done();
    let step = Step::begin("waiting until every node's port 8000 answers from each replica");
    answers_of_every_replica(&cluster, cluster.places(), mesh.replicas, MESH_PATIENCE)?;
    step.done();
    let rows = status_of(&cluster)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "\nThe swarm is up. Every node's port 8000 answers from each of the three replicas:\n"
    );
    for place in cluster.places() {
        let port = cluster.vm(&place.name)?.forward(false, Mesh::PORT)?;
        let role = match place.role {
            Role::Manager => "manager",
            Role::Worker => "worker",
        };
        println!(
            "  curl 127.0.0.1:{port}    # {} ({role}, {})",
            place.name,
            place.address()
        );
    }
    let first = &cluster.manager().name;
    let last = cluster.places().last().map_or(first, |place| &place.name);
    println!(
        "\nTry:\n  cargo lab docker {first} -- node ls\n  cargo lab docker {first} -- service ps whoami\n  \
         cargo lab skep {first} -- service scale whoami=5\n  cargo lab debug {last} -- nsenter --net=/run/skep/netns/ingress_sbox ipvsadm -ln\n  \
         cargo lab kill {last}\n  cargo lab status\n  cargo lab down"
    );
    Ok(())
}
