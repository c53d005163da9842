//! skep-init: PID 1 of the initrd.
//!
//! It finds the root that `roothash=` names, opens it under dm-verity, gives it a volatile `/etc` and the state partition
//! on `/var` (made at the first boot), and becomes systemd. Where that cannot be done, it says why on the console and
//! restarts the machine, so that boot counting can choose the other slot.

mod cmdline;
mod console;
mod device_mapper;
mod disk;
mod failure;
mod gpt;
mod modules;
mod mounts;
mod state;
mod verity;

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use rustix::mount::MountFlags;
use rustix::system::{RebootCommand, reboot};

use crate::cmdline::RootHash;
use crate::console::{complain, say};
use crate::device_mapper::Device;
use crate::disk::Disk;
use crate::failure::{Doing as _, Failure, Result};
use crate::verity::{OnCorruption, Superblock};

const ROOT: &str = "/sysroot";
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
/// How long a disk may take to appear with the usual driver, and then with every other one.
const SOON: Duration = Duration::from_secs(1);
const AT_LAST: Duration = Duration::from_secs(30);
/// Long enough to be read on a screen, short enough for a machine that nobody looks at.
const BEFORE_RESTART: Duration = Duration::from_secs(5);

fn main() {
    let Err(failure) = boot();
    complain(&failure.to_string());
    complain("the machine restarts in 5 seconds");
    sleep(BEFORE_RESTART);
    // Returning from here would be a panic of the kernel, which restarts the machine as well.
    let _ = reboot(RebootCommand::Restart);
}

fn boot() -> Result<Infallible> {
    mounts::kernel_file_systems()?;
    let cmdline = fs::read_to_string("/proc/cmdline").doing(|| "read /proc/cmdline".to_owned())?;
    let hash = RootHash::from_cmdline(&cmdline).doing(|| "boot".to_owned())?;
    modules::load(modules::FIRST)?;
    let mut disk = find_disk(&hash)?;
    let root = Path::new(ROOT);
    mount_root(&disk, &hash, root)?;
    mounts::volatile_etc(root)?;
    mounts::temporary(root)?;
    let dev = root.join("dev");
    rustix::mount::mount_bind("/dev", &dev).doing(|| "bind /dev for mkfs".to_owned())?;
    state::mount_state(&mut disk, root, &root.join("var"))?;
    rustix::mount::unmount(&dev, rustix::mount::UnmountFlags::DETACH)
        .doing(|| "unbind /dev".to_owned())?;
    state::furnish(&root.join("var"))?;
    state::machine_id(&root.join("var"), &root.join("etc"))?;
    mounts::switch_root(root)?;
    let why = Command::new(SYSTEMD).args(std::env::args().skip(1)).exec();
    Err(Failure::new(format!("start {SYSTEMD}"), why))
}

fn find_disk(hash: &RootHash) -> Result<Disk> {
    if let Some(disk) = Disk::find(hash, SOON)? {
        return Ok(disk);
    }
    modules::load(modules::OTHER_DISKS)?;
    Disk::find(hash, AT_LAST)?.ok_or_else(|| {
        Failure::new(
            "find the root",
            format!("no disk has the partitions of roothash={hash}"),
        )
    })
}

fn mount_root(disk: &Disk, hash: &RootHash, root: &Path) -> Result<()> {
    let data = disk.node_by_uuid(hash.data_uuid())?;
    let tree = disk.node_by_uuid(hash.hash_uuid())?;
    let mut bytes = [0; verity::SUPERBLOCK_SIZE];
    File::open(&tree)
        .and_then(|file| file.read_exact_at(&mut bytes, 0))
        .doing(|| format!("read {tree}"))?;
    let superblock = Superblock::parse(&bytes).doing(|| format!("verify {data} by {tree}"))?;

    let device = Device::create("root")?;
    let load = |on_corruption| {
        let table = superblock.table(&data, &tree, hash, on_corruption);
        device.load("verity", superblock.sectors(), &table)
    };
    // The first block is read while a mismatch is an error that can be told; from then on the kernel restarts.
    load(OnCorruption::Fail)?;
    File::open(device.path())
        .and_then(|file| file.read_exact_at(&mut [0; 4096], 0))
        .doing(|| format!("verify the root on {data}: it does not match roothash={hash}"))?;
    load(OnCorruption::Restart)?;
    fs::create_dir_all(root).doing(|| format!("make {ROOT}"))?;
    mounts::mount(&device.path(), root, "erofs", MountFlags::RDONLY, "")?;
    say(&format!("verified root {hash} on {data}"));
    Ok(())
}
