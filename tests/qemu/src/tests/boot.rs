//! How the image boots: by UEFI, from a changed root, and from a partition table that was half written.
//!
//! One machine without a network, looked at by its console alone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::commands::Prepared;
use crate::console::{faults, without_escapes};
use crate::packages::{FIRMWARE, ensure_installed};
use crate::paths::Paths;
use crate::process::run;
use crate::runner::{Run, Test};
use crate::vm::Accelerator;

pub(super) const TESTS: &[Test] = &[
    Test {
        id: "boot-uefi",
        shows: "UEFI firmware, systemd-boot and the unified kernel lead to skepd on a verified root",
        slow: false,
        causes: &[],
        run: Run::Image(uefi),
    },
    Test {
        id: "boot-changed-root",
        shows: "a root that does not match its hash is not booted; the console says why, the machine restarts",
        slow: false,
        causes: &[],
        run: Run::Image(changed_root),
    },
    Test {
        id: "boot-torn-table",
        shows: "power cut while the partition table is written: the next boot repairs it and keeps the state",
        slow: false,
        causes: &[],
        run: Run::Image(torn_table),
    },
];

/// A translated boot on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);
const SECTOR: u64 = 512;
/// systemd's line, with `systemd.show_status=1`.
const SKEPD_STARTS: &str = "Skep node agent";
const VERIFIED: &str = "skep-init: verified root";
const FIRST_BOOT: &str = "skep-init: first boot";
/// What makes those lines visible.
const TALK: &str = "loglevel=7 systemd.show_status=1";
/// Where the first slot's root begins: behind the ESP of 512 MiB, which begins at 1 MiB.
const ROOT: u64 = 513 * 1024 * 1024;

const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

fn uefi(paths: &Paths, prepared: &Prepared) -> Result<()> {
    ensure_installed(&[FIRMWARE])?;
    let machine = Machine::new(paths, prepared, "boot-uefi")?;
    let variables = machine.folder.join("variables.fd");
    fs::copy(FIRMWARE_VARIABLES, &variables).context("cannot copy the firmware's variables")?;
    let code = format!("if=pflash,format=raw,readonly=on,file={}", FIRMWARE.1);
    let variables = format!("if=pflash,format=raw,file={}", variables.display());
    let extra = format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={TALK}");
    let said = machine.boot_soundly(
        &["-drive", &code, "-drive", &variables, "-smbios", &extra],
        &[VERIFIED, SKEPD_STARTS],
    )?;
    if !said.contains(prepared.image.cmdline.trim()) {
        bail!("the kernel was not started with the unified image's command line");
    }
    Ok(())
}

fn changed_root(paths: &Paths, prepared: &Prepared) -> Result<()> {
    let machine = Machine::new(paths, prepared, "boot-changed-root")?;
    machine.overwrite(ROOT, 4096)?;
    let direct = direct(prepared);
    let said = machine.boot(&direct.arguments(), &["the machine restarts"])?;
    if !said.contains("skep-init: cannot verify the root") || said.contains(VERIFIED) {
        bail!("the console does not say that the root is not the right one");
    }
    Ok(())
}

fn torn_table(paths: &Paths, prepared: &Prepared) -> Result<()> {
    let machine = Machine::new(paths, prepared, "boot-torn-table")?;
    let direct = direct(prepared);
    let first = machine.boot_soundly(&direct.arguments(), &[FIRST_BOOT, SKEPD_STARTS])?;
    if !first.contains(VERIFIED) {
        bail!("the first boot has no verified root");
    }
    // The header of the first copy; the second copy was written before it.
    machine.overwrite(SECTOR, SECTOR)?;
    let second = machine.boot_soundly(&direct.arguments(), &[VERIFIED, SKEPD_STARTS])?;
    if second.contains(FIRST_BOOT) {
        bail!("the state partition was made anew");
    }
    Ok(())
}

/// What QEMU loads in place of firmware and boot loader.
struct Direct {
    kernel: String,
    initrd: String,
    cmdline: String,
}

fn direct(prepared: &Prepared) -> Direct {
    Direct {
        kernel: prepared.image.kernel.display().to_string(),
        initrd: prepared.image.initrd.display().to_string(),
        cmdline: format!("{} {TALK}", prepared.image.cmdline),
    }
}

impl Direct {
    fn arguments(&self) -> [&str; 6] {
        [
            "-kernel",
            &self.kernel,
            "-initrd",
            &self.initrd,
            "-append",
            &self.cmdline,
        ]
    }
}

/// A machine with a disk over the image's.
struct Machine {
    folder: PathBuf,
    accelerator: Accelerator,
}

impl Machine {
    fn new(paths: &Paths, prepared: &Prepared, name: &str) -> Result<Machine> {
        let folder = paths.folder(&format!("boots/{name}"))?;
        let disk = folder.join("disk.qcow2");
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&prepared.image.disk)
            .arg(&disk)
            .arg("4G"))?;
        Ok(Machine {
            folder,
            accelerator: prepared.accelerator,
        })
    }

    /// Puts junk onto the disk.
    fn overwrite(&self, offset: u64, length: u64) -> Result<()> {
        run(Command::new("qemu-io")
            .args(["-f", "qcow2", "-c"])
            .arg(format!("write -P 0x55 {offset} {length}"))
            .arg(self.folder.join("disk.qcow2")))
        .map(drop)
    }

    /// The same for a boot on which nothing may go wrong.
    fn boot_soundly(&self, how: &[&str], until: &[&str]) -> Result<String> {
        let said = self.boot(how, until)?;
        match faults(&said).first() {
            None => Ok(said),
            Some(fault) => bail!("the console tells a fault: {fault}"),
        }
    }

    /// Boots, waits until the console has said all of that, pulls the power cord, and gives what it said.
    fn boot(&self, how: &[&str], until: &[&str]) -> Result<String> {
        let console = self.folder.join("console");
        let mut power = Power(
            Command::new("qemu-system-x86_64")
                .args(["-nodefaults", "-no-user-config", "-display", "none"])
                .args(["-M", "q35", "-m", "768", "-smp", "2", "-no-reboot"])
                .args(match self.accelerator {
                    Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
                    Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
                })
                .args(["-drive", "file=disk.qcow2,if=virtio,format=qcow2"])
                .args(["-device", "virtio-rng-pci", "-serial", "stdio"])
                .args(how)
                .current_dir(&self.folder)
                .stdin(Stdio::null())
                .stdout(File::create(&console)?)
                .stderr(File::create(self.folder.join("qemu.log"))?)
                .spawn()
                .context("cannot start qemu-system-x86_64")?,
        );
        let begun = Instant::now();
        loop {
            let ended = power.0.try_wait()?.is_some();
            let said = read(&console);
            if until.iter().all(|line| said.contains(line)) {
                return Ok(said);
            }
            if ended || begun.elapsed() > PATIENCE {
                let end: Vec<&str> = said.lines().rev().take(10).collect();
                bail!(
                    "the console never said {until:?}; its end, last line first:\n{}",
                    end.join("\n")
                );
            }
            sleep(Duration::from_millis(200));
        }
    }
}

fn read(console: &Path) -> String {
    let bytes = fs::read(console).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| without_escapes(line) + "\n")
        .collect()
}

/// A machine that is off when nobody looks at it any more.
struct Power(Child);

impl Drop for Power {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
