//! One virtual machine: QEMU's command line, power, links, and the ways in.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::console::{ARGUMENTS, CONSOLE, QEMU_PID};
use crate::paths::write_atomically;
use crate::process::{Background, Signal, ourselves, run};
use crate::{console, qmp};

/// The address of every guest on its own user-mode network, and the host's there.
const GUEST: &str = "192.168.76.15";
/// Where a guest reaches the host's loopback.
pub const HOST: &str = "192.168.76.2";
/// The management API of a node.
pub const API_PORT: u16 = 2376;

const DISK: &str = "disk.qcow2";
const BYTES_PER_GIB: u64 = 1 << 30;

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// In hardware.
    Kvm,
    /// Translated, one thread per virtual CPU.
    Tcg,
}

/// What a VM boots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: PathBuf,
    /// The whole kernel command line.
    pub cmdline: String,
    /// The raw disk that the VM's own disk is laid over.
    pub disk: Option<PathBuf>,
    /// systemd credentials (name, value), given by SMBIOS.
    pub credentials: Vec<(String, Vec<u8>)>,
}

/// A VM as it is set up; kept in its folder as `vm.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vm {
    /// Its name, also its port on the switch.
    pub name: String,
    /// Everything about it lies here.
    pub folder: PathBuf,
    /// Last byte of its MAC addresses and of its address on the segment.
    pub number: u8,
    /// The number that its firmware's UUID is made of; the same unless two machines are to have one UUID.
    pub uuid_of: u8,
    /// Memory in MiB.
    pub memory: u32,
    /// Virtual CPUs.
    pub cpus: u8,
    /// Size of its disk in GiB.
    pub disk_gib: u64,
    /// How guest code runs.
    pub accelerator: Accelerator,
    /// What it boots.
    pub boot: Boot,
    /// Whether a reboot turns it off instead.
    pub once: bool,
    /// Ports on the host's loopback that lead into it.
    pub forwards: Vec<Forward>,
}

/// A port on 127.0.0.1 that leads to a port of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Whether it carries UDP; else TCP.
    pub udp: bool,
    /// On the host.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}

impl Forward {
    fn rule(&self) -> String {
        let protocol = if self.udp { "udp" } else { "tcp" };
        let Forward { host, guest, .. } = self;
        format!("{protocol}:127.0.0.1:{host}-{GUEST}:{guest}")
    }
}

impl Vm {
    /// Reads a VM that was set up before.
    pub fn load(folder: &Path) -> Result<Vm> {
        let file = folder.join("vm.json");
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))
    }

    /// Writes it down.
    pub fn save(&self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        write_atomically(
            &self.folder.join("vm.json"),
            &serde_json::to_vec_pretty(self)?,
        )
    }

    /// Gives a credential another value.
    pub fn set_credential(&mut self, name: &str, value: &str) {
        let credentials = &mut self.boot.credentials;
        credentials.retain(|(known, _)| known != name);
        credentials.push((name.to_owned(), value.as_bytes().to_vec()));
    }

    /// Makes its disk anew, empty over the image's.
    pub fn make_disk(&self) -> Result<()> {
        let Some(base) = &self.boot.disk else {
            return Ok(());
        };
        let length = fs::metadata(base)
            .with_context(|| format!("cannot read {}", base.display()))?
            .len();
        let size = length.max(self.disk_gib * BYTES_PER_GIB);
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(base)
            .arg(self.folder.join(DISK))
            .arg(size.to_string()))?;
        Ok(())
    }

    fn qemu(&self) -> Background {
        Background::at(self.folder.join(QEMU_PID))
    }

    /// Whether it has power.
    pub fn running(&self) -> bool {
        self.qemu().alive()
    }

    /// Turns it on; returns once QEMU's control socket answers.
    pub fn power_on(&self) -> Result<()> {
        if self.running() {
            return Ok(());
        }
        let arguments = self.arguments()?;
        write_atomically(
            &self.folder.join(ARGUMENTS),
            &serde_json::to_vec(&arguments)?,
        )?;
        let _ = fs::remove_file(self.folder.join(qmp::SOCKET));
        let attendant = Background::at(self.folder.join("attendant.pid"));
        attendant.wait_gone(Duration::from_secs(5));
        let log = self.folder.join("qemu.log");
        attendant.start(
            ourselves()
                .arg("internal-machine")
                .current_dir(&self.folder),
            &log,
        )?;
        let begun = Instant::now();
        while qmp::execute(&self.folder, "query-status", json!({})).is_err() {
            if !attendant.alive() || begun.elapsed() > Duration::from_secs(30) {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("QEMU of {} does not start: {}", self.name, said.trim());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Pulls the power cord.
    pub fn power_cut(&self) -> Result<()> {
        self.qemu().stop(Signal::Kill, Duration::from_secs(10))?;
        Background::at(self.folder.join("attendant.pid")).stop(Signal::Kill, Duration::from_secs(2))
    }

    /// Presses the power button and waits until the machine is off.
    pub fn power_button(&self, patience: Duration) -> Result<()> {
        qmp::execute(&self.folder, "system_powerdown", json!({}))?;
        if !self.qemu().wait_gone(patience) {
            bail!(
                "{} does not turn off within {} s after the power button",
                self.name,
                patience.as_secs()
            );
        }
        Ok(())
    }

    /// Stops its virtual CPUs: the machine hangs, its links stay.
    pub fn pause(&self) -> Result<()> {
        qmp::execute(&self.folder, "stop", json!({})).map(drop)
    }

    /// Lets its virtual CPUs go on.
    pub fn resume(&self) -> Result<()> {
        qmp::execute(&self.folder, "cont", json!({})).map(drop)
    }

    /// Whether it is paused.
    pub fn paused(&self) -> bool {
        qmp::execute(&self.folder, "query-status", json!({}))
            .is_ok_and(|status| status["status"] == "paused")
    }

    /// A port on 127.0.0.1 that leads to this port of the guest; the same one each time.
    pub fn forward(&mut self, udp: bool, guest: u16) -> Result<u16> {
        let known = self
            .forwards
            .iter()
            .find(|forward| forward.guest == guest && forward.udp == udp);
        if let Some(forward) = known {
            return Ok(forward.host);
        }
        let forward = Forward {
            udp,
            host: free_port()?,
            guest,
        };
        if self.running() {
            let said = qmp::monitor(
                &self.folder,
                &format!("hostfwd_add way-out {}", forward.rule()),
            )?;
            if !said.is_empty() {
                bail!(
                    "QEMU cannot forward to port {guest} of {}: {said}",
                    self.name
                );
            }
        }
        self.forwards.push(forward);
        self.save()?;
        Ok(forward.host)
    }

    /// The host's port that leads to the management API.
    pub fn api_port(&self) -> Option<u16> {
        let api = |forward: &&Forward| forward.guest == API_PORT && !forward.udp;
        self.forwards.iter().find(api).map(|forward| forward.host)
    }

    /// The console's file.
    pub fn console_file(&self) -> PathBuf {
        self.folder.join(CONSOLE)
    }

    /// The last lines of the console.
    pub fn console_tail(&self, lines: usize) -> String {
        console::tail(&self.folder, lines)
    }

    /// QEMU's command line. Credentials go by files, so that no process list shows them.
    fn arguments(&self) -> Result<Vec<String>> {
        let mut list: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| list.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["qemu-system-x86_64", "-name", &self.name]);
        add(&[
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-M",
            "q35",
        ]);
        match self.accelerator {
            Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Tcg => add(&["-accel", "tcg,thread=multi", "-cpu", "max"]),
        }
        if self.once {
            add(&["-no-reboot"]);
        }
        add(&["-smp", &self.cpus.to_string()]);
        add(&["-m", &self.memory.to_string()]);
        add(&[
            "-uuid",
            &format!("5ce90000-0000-4000-8000-{:012x}", self.uuid_of),
        ]);
        add(&[
            "-serial",
            "stdio",
            "-qmp",
            &format!("unix:{},server=on,wait=off", qmp::SOCKET),
        ]);
        add(&["-device", "virtio-rng-pci"]);
        add(&[
            "-kernel",
            &text(&self.boot.kernel)?,
            "-initrd",
            &text(&self.boot.initrd)?,
        ]);
        add(&["-append", &self.boot.cmdline]);
        if self.boot.disk.is_some() {
            // `unsafe` skips the host's fsync: a killed QEMU still loses nothing that the guest has written.
            let drive = format!("file={DISK},if=virtio,format=qcow2,cache=unsafe,discard=unmap");
            add(&["-drive", &drive]);
        }
        // Relative to the VM's folder: a socket's address has room for 107 bytes only.
        let port = format!("../../switch/{}.sock", self.name);
        let segment = "stream,id=segment,server=off,addr.type=unix";
        add(&["-netdev", &format!("{segment},addr.path={port}")]);
        add(&["-device", &nic("segment", 0x77, self.number)]);
        let mut out = format!("user,id=way-out,net=192.168.76.0/24,host={HOST},dhcpstart={GUEST}");
        for forward in &self.forwards {
            out.push_str(&format!(",hostfwd={}", forward.rule()));
        }
        add(&[
            "-netdev",
            &out,
            "-device",
            &nic("way-out", 0x76, self.number),
        ]);
        for (name, value) in &self.boot.credentials {
            let file = format!("credential.{name}");
            let line = format!(
                "io.systemd.credential.binary:{name}={}",
                BASE64.encode(value)
            );
            write_atomically(&self.folder.join(&file), line.as_bytes())?;
            add(&["-smbios", &format!("type=11,path={file}")]);
        }
        Ok(list)
    }
}

fn nic(netdev: &str, segment: u8, number: u8) -> String {
    // No option ROM: nothing boots from the network.
    format!("virtio-net-pci,netdev={netdev},mac=52:54:00:{segment:02x}:00:{number:02x},romfile=")
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A port on the host's loopback that nobody uses now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}
