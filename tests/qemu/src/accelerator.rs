//! Whether KVM really works here: a machine may have `/dev/kvm` and yet not run the image's kernel with it.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::image::Image;
use crate::paths::{Paths, write_atomically};
use crate::progress::{Step, say};
use crate::vm::Accelerator;

/// What the kernel says when it has come so far that it starts the initrd's program.
const SIGN: &str = "as init process";
/// A boot under KVM takes about a second to that point.
const PATIENCE: Duration = Duration::from_secs(20);

/// The accelerator for this machine, from a probe boot of the image's kernel the first time.
pub fn choose(paths: &Paths, image: &Image) -> Result<Accelerator> {
    let file = paths.lab.join("accelerator.json");
    if let Ok(text) = fs::read(&file)
        && let Ok(known) = serde_json::from_slice(&text)
    {
        return Ok(known);
    }
    let usable = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let chosen = match usable {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // Not kept: the next run may be allowed.
            say(
                "you may not open /dev/kvm (join its group: sudo adduser $USER kvm, and log in again): \
                 the VMs are emulated, everything in them takes several times longer",
            );
            return Ok(Accelerator::Tcg);
        }
        Err(_) => Accelerator::Tcg,
        Ok(_) => probe(&image.kernel, &image.initrd)?,
    };
    if chosen == Accelerator::Tcg {
        say("no usable KVM: the VMs are emulated, everything in them takes several times longer");
    }
    write_atomically(&file, &serde_json::to_vec(&chosen)?)?;
    Ok(chosen)
}

fn probe(kernel: &Path, initrd: &Path) -> Result<Accelerator> {
    let step = Step::begin("trying whether KVM works");
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-M", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "512",
        ])
        .args(["-serial", "stdio", "-append", "console=ttyS0 panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let serial = qemu.stdout.take().context("QEMU has no serial console")?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        // Bytes, not text: a guest that goes wrong may write anything.
        let lines = BufReader::new(serial).split(b'\n').map_while(Result::ok);
        for line in lines {
            if tell
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let begun = Instant::now();
    let mut works = false;
    while let Ok(line) = told.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
        if line.contains(SIGN) {
            works = true;
            break;
        }
    }
    qemu.kill()?;
    qemu.wait()?;
    step.done();
    Ok(if works {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    })
}
