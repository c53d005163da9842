//! What the daemon is told: its options, and the node's configuration from outside.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use clap::Parser;
use skep_core::system::config::{self, Complaint, Config};

/// Files of credentials that are larger are not read.
const MAX_CREDENTIAL: u64 = 64 * 1024;

/// Options of the daemon. The image needs none of them; they let several daemons run on one machine.
#[derive(Debug, Clone, Parser)]
#[command(name = "skepd", version, about = "The node agent of Skep")]
pub struct Options {
    /// Folder of the state that outlives a reboot.
    #[arg(long, default_value = "/var/lib/skep")]
    pub state: PathBuf,
    /// Folder of the state that does not.
    #[arg(long, default_value = "/run/skep")]
    pub run: PathBuf,
    /// File with the `skep.*` keys.
    #[arg(long, default_value = "/proc/cmdline")]
    pub cmdline: PathBuf,
    /// Address on which 2376 and 2377 listen.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub listen: IpAddr,
    /// Machine id to go by instead of the machine's own.
    #[arg(long)]
    pub machine_id: Option<String>,
    /// Only the cluster: no containers and no networks.
    #[arg(long)]
    pub cluster_only: bool,
}

/// Reads the configuration of this node, and what is wrong with it.
#[must_use]
pub fn read(options: &Options) -> (Config, Vec<Complaint>) {
    let cmdline = fs::read_to_string(&options.cmdline).unwrap_or_default();
    // systemd says where it put the credentials of this unit; without systemd there are none.
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
    let credentials = folder.map_or_else(BTreeMap::new, |folder| credentials(Path::new(&folder)));
    config::parse(&cmdline, &credentials)
}

fn credentials(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(files) = fs::read_dir(folder) else {
        return BTreeMap::new();
    };
    files
        .filter_map(Result::ok)
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let small = file.metadata().ok()?.len() <= MAX_CREDENTIAL;
            let ours = name.starts_with("skep.") && small;
            let content = ours.then(|| fs::read(file.path()).ok()).flatten()?;
            Some((name, content))
        })
        .collect()
}
