//! A script in one VM with the image's kernel: for what the build host's kernel lacks (IPVS) or would not forgive.
//!
//! The VM is not a node. It has the image's kernel and modules, a small Debian user space in memory, and the files
//! that a test brings; it runs the test's script, says how that ended, and turns itself off.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::commands::Prepared;
use crate::cpio::Cpio;
use crate::images::TOOLS_PACKAGES;
use crate::packages::{IMAGE_SUITE, Suite};
use crate::paths::Paths;
use crate::process::{Background, Signal};
use crate::progress::Step;
use crate::vm::{Boot, Vm};
use crate::{console, switch};

/// Libraries that our programs are linked with, and modprobe.
const MORE_PACKAGES: &[&str] = &[
    "bash",
    "kmod",
    "libc-bin",
    "libelf1t64",
    "libgcc-s1",
    "libseccomp2",
    "zlib1g",
];

/// The modules that the image loads at boot too.
const MODULES: &str = "overlay bridge br_netfilter vxlan veth dummy tun ip_vs ip_vs_rr nf_tables nft_chain_nat nft_masq \
                       nft_fib_inet nft_ct nft_reject_inet nft_redir nf_conntrack nf_nat";

/// The script's exit status follows this on the console.
const END: &str = "guest: the script ended with ";
const MEMORY_MIB: u32 = 1024;

/// First program of the VM: moves everything to a tmpfs, since nothing can be pivoted away from an initramfs.
const INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir /new
mount -t tmpfs -o size=90%,mode=755 new /new
cp -a /usr /bin /sbin /lib /lib64 /etc /var /guest /new/
mkdir -m 755 /new/proc /new/sys /new/dev /new/run /new/root
mkdir -m 1777 /new/tmp
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
exec switch_root /new /guest/init
"#;

const SECOND_INIT: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run
mkdir -p /dev/pts /dev/shm /sys/fs/bpf
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
[ -e /usr/lib/modules/*/modules.dep ] || depmod
for m in $(cat /guest/modules); do modprobe "$m" || echo "guest: no module $m"; done
cd /guest
sh /guest/script
echo "guest: the script ended with $?"
echo o > /proc/sysrq-trigger
sleep 60
"#;

/// What a script needs.
pub struct Script<'a> {
    /// A name for its folder.
    pub name: &'a str,
    /// The script, for dash.
    pub text: String,
    /// Programs of the host that it finds in `/guest`, under their own names.
    pub programs: Vec<PathBuf>,
    /// How long it may take, boot included.
    pub patience: Duration,
}

/// Runs the script; gives the console.
///
/// # Errors
/// When the script fails, does not end in time, or the kernel complains; with the end of the console.
pub fn run(paths: &Paths, prepared: &Prepared, script: &Script<'_>) -> Result<String> {
    let folder = paths.folder("guest")?.join(script.name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("switch"))?;
    let vm = Vm {
        name: "guest".to_owned(),
        folder: folder.join("nodes/guest"),
        number: 99,
        uuid_of: 99,
        memory: MEMORY_MIB,
        cpus: 1,
        disk_gib: 0,
        accelerator: prepared.accelerator,
        boot: Boot {
            kernel: prepared.image.kernel.clone(),
            initrd: folder.join("initrd"),
            cmdline: "console=ttyS0 no_timer_check panic=-1 quiet random.trust_cpu=on".to_owned(),
            disk: None,
            credentials: Vec::new(),
        },
        once: true,
        forwards: Vec::new(),
    };
    write_initrd(paths, &prepared.image.root, script, &vm.boot.initrd)?;
    vm.save()?;
    let switch = Background::at(folder.join("switch/pid"));
    switch::start(&folder.join("switch"), &switch, &["guest".to_owned()])?;
    let ended = vm.power_on().and_then(|()| wait(&vm, script.patience));
    vm.power_cut()?;
    switch.stop(Signal::Terminate, Duration::from_secs(5))?;
    ended?;
    let said = console::read(&vm.folder);
    let faults = console::faults(&said);
    if let Some(fault) = faults.first() {
        bail!("the kernel complains: {fault}");
    }
    match said.lines().find_map(|line| line.split_once(END)) {
        Some((_, "0")) => Ok(said),
        Some((_, status)) => bail!(
            "the script ended with {status}; the console ends with:\n{}",
            vm.console_tail(30)
        ),
        None => bail!(
            "the VM ended before its script; the console ends with:\n{}",
            vm.console_tail(15)
        ),
    }
}

/// Ends what an interrupted run has left.
pub fn stop_all(paths: &Paths) -> Result<()> {
    for entry in fs::read_dir(paths.folder("guest")?)? {
        let folder = entry?.path();
        if let Ok(vm) = Vm::load(&folder.join("nodes/guest")) {
            vm.power_cut()?;
            Background::at(folder.join("switch/pid"))
                .stop(Signal::Terminate, Duration::from_secs(5))?;
        }
    }
    Ok(())
}

fn wait(vm: &Vm, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    while vm.running() {
        if begun.elapsed() > patience {
            bail!(
                "not done after {} s; the console ends with:\n{}",
                patience.as_secs(),
                vm.console_tail(15)
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn write_initrd(paths: &Paths, image_root: &Path, script: &Script<'_>, file: &Path) -> Result<()> {
    let space = user_space(paths)?;
    let out = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    let mut cpio = Cpio::new(BufWriter::new(out));
    cpio.add_tree(&space, "")?;
    for folder in ["usr", "usr/lib", "usr/lib/modules"] {
        cpio.add_folder(folder)?;
    }
    cpio.add_tree(&image_root.join("usr/lib/modules"), "usr/lib/modules")?;
    for folder in ["proc", "sys", "dev", "guest"] {
        cpio.add_folder(folder)?;
    }
    cpio.add_program("init", INIT.as_bytes())?;
    cpio.add_program("guest/init", SECOND_INIT.as_bytes())?;
    cpio.add_program("guest/modules", MODULES.as_bytes())?;
    cpio.add_program("guest/script", script.text.as_bytes())?;
    for program in &script.programs {
        let name = program.file_name().context("a program without a name")?;
        let content =
            fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        cpio.add_program(&format!("guest/{}", name.to_string_lossy()), &content)?;
    }
    cpio.finish()?.flush()?;
    Ok(())
}

/// The Debian user space, unpacked once.
fn user_space(paths: &Paths) -> Result<PathBuf> {
    let root = paths.folder("guest")?.join("user-space");
    if !root.exists() {
        let step = Step::begin("fetching a user space for guest tests");
        let making = root.with_extension("making");
        let _ = fs::remove_dir_all(&making);
        let packages = [TOOLS_PACKAGES, MORE_PACKAGES].concat();
        Suite::open(paths, IMAGE_SUITE)?.unpack_with_dependencies(&packages, &making)?;
        for part in [
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
            "usr/share/perl5",
        ] {
            let _ = fs::remove_dir_all(making.join(part));
        }
        fs::rename(&making, &root)?;
        step.done();
    }
    Ok(root)
}
