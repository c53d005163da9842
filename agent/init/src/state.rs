//! The state partition: made at the first boot, checked when it was not left clean, mounted on `/var`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::MountFlags;

use crate::console::say;
use crate::disk::Disk;
use crate::failure::{Doing as _, Failure, Result};
use crate::mounts::mount;

const LABEL: &str = "state";
const UNFINISHED: &str = "state-unfinished";
/// Less than this cannot hold images and containers.
const AT_LEAST: u64 = 512 * 1024 * 1024;
/// Where the superblock of ext4 is, and what is of interest in it.
const SUPERBLOCK: u64 = 1024;
const MAGIC: usize = 56;
const STATE: usize = 58;
const HAS_ERRORS: u8 = 2;

/// Mounts the state partition on `target` below `root`, making what is missing with the programs of `root`.
pub(crate) fn mount_state(disk: &mut Disk, root: &Path, target: &Path) -> Result<()> {
    let node = match disk.node_by_label(LABEL)? {
        Some(node) => node,
        None => first_boot(disk, root)?,
    };
    if damaged(&node).doing(|| format!("read {node}"))? {
        check(root, &node)?;
    }
    let attempt = || {
        mount(
            &node,
            target,
            "ext4",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME,
            "",
        )
    };
    attempt().or_else(|_| {
        check(root, &node)?;
        attempt()
    })
}

/// A partition that is being made has a label of its own, so that only a boot that was cut short here is repeated, and a
/// file system that is merely broken is never taken for a new one.
fn first_boot(disk: &mut Disk, root: &Path) -> Result<String> {
    say("first boot: making the state partition");
    let node = match disk.node_by_label(UNFINISHED)? {
        Some(node) => node,
        None => disk.add(UNFINISHED, random_uuid()?, AT_LEAST)?,
    };
    make(root, &node)?;
    disk.rename(UNFINISHED, LABEL)?;
    Ok(node)
}

/// Whether the kernel has noted errors in the file system.
fn damaged(node: &str) -> io::Result<bool> {
    let mut superblock = [0; 64];
    File::open(node)?.read_exact_at(&mut superblock, SUPERBLOCK)?;
    Ok(has_errors(&superblock))
}

fn has_errors(superblock: &[u8; 64]) -> bool {
    superblock[MAGIC..MAGIC + 2] == [0x53, 0xef] && superblock[STATE] & HAS_ERRORS != 0
}

fn make(root: &Path, node: &str) -> Result<()> {
    let options = "lazy_itable_init=1,lazy_journal_init=1";
    let code = run(
        root,
        "/usr/sbin/mkfs.ext4",
        &["-q", "-F", "-L", LABEL, "-E", options, node],
    )?;
    if code != 0 {
        return Err(Failure::new(
            format!("make a file system on {node}"),
            format!("mkfs.ext4 gave {code}"),
        ));
    }
    File::open(node)
        .and_then(|file| file.sync_all())
        .doing(|| format!("write {node}"))
}

/// Repairs what can be repaired without asking.
fn check(root: &Path, node: &str) -> Result<()> {
    say("the state partition was not left clean: checking it");
    match run(root, "/usr/sbin/e2fsck", &["-p", node])? {
        0..=3 => Ok(()),
        code => Err(Failure::new(
            format!("repair the state partition {node}"),
            format!("e2fsck gave {code}; its data may be saved from another machine"),
        )),
    }
}

fn run(root: &Path, program: &str, arguments: &[&str]) -> Result<i32> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env_clear();
    let root = root.to_owned();
    // SAFETY: between fork and exec only two system calls are made, in a process with one thread.
    unsafe {
        command.pre_exec(move || {
            rustix::process::chroot(&root)?;
            rustix::process::chdir("/")?;
            Ok(())
        });
    }
    let status = command.status().doing(|| format!("start {program}"))?;
    Ok(status.code().unwrap_or(-1))
}

/// The folders that programs expect in `/var`; theirs are made by themselves.
pub(crate) fn furnish(var: &Path) -> Result<()> {
    for (name, mode) in [
        ("cache", 0o755),
        ("lib", 0o755),
        ("log", 0o755),
        ("spool", 0o755),
        ("tmp", 0o1777),
    ] {
        let folder = var.join(name);
        let doing = || format!("make {}", folder.display());
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(why) => return Err(Failure::new(doing(), why)),
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).doing(doing)?;
    }
    // The address of the system bus that D-Bus libraries know lies below it.
    let run = var.join("run");
    match std::os::unix::fs::symlink("../run", &run) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::new(format!("make {}", run.display()), why))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The machine's id is kept with the state, since `/etc` is new at every boot: made once, at random. What the kernel
/// command line says about it (`systemd.machine_id=`) wins in systemd itself.
pub(crate) fn machine_id(var: &Path, etc: &Path) -> Result<()> {
    let kept = var.join("lib/machine-id");
    let id = match fs::read_to_string(&kept) {
        Ok(text) if is_machine_id(text.trim_end()) => text,
        Ok(_) | Err(_) => {
            let text: String = random_uuid()?.iter().map(|b| format!("{b:02x}")).collect();
            keep(&kept, &text).doing(|| format!("write {}", kept.display()))?;
            text
        }
    };
    let file = etc.join("machine-id");
    fs::write(&file, format!("{}\n", id.trim_end()))
        .doing(|| format!("write {}", file.display()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444))
        .doing(|| format!("set the mode of {}", file.display()))
}

fn keep(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::create_dir_all(folder)?;
    let new = path.with_extension("new");
    fs::write(&new, format!("{text}\n"))?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32
        && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && text.bytes().any(|b| b != b'0')
}

/// A random UUID (version 4).
fn random_uuid() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .doing(|| "read /dev/urandom".to_owned())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_a_file_system() {
        let mut superblock = [0; 64];
        superblock[STATE] = 3;
        assert!(!has_errors(&superblock));
        superblock[MAGIC..MAGIC + 2].copy_from_slice(&[0x53, 0xef]);
        assert!(has_errors(&superblock));
        superblock[STATE] = 1;
        assert!(!has_errors(&superblock));
    }

    #[test]
    fn a_machine_id_is_32_digits_and_not_zero() {
        assert!(is_machine_id(&"0a".repeat(16)));
        for bad in [
            "",
            "0a",
            &"0".repeat(32),
            &"0A".repeat(16),
            &"0g".repeat(16),
        ] {
            assert!(!is_machine_id(bad), "{bad}");
        }
    }

    #[test]
    fn var_is_furnished_once() {
        let var = std::env::temp_dir().join(format!("skep-init-var-{}", std::process::id()));
        fs::create_dir_all(&var).unwrap();
        furnish(&var).unwrap();
        let mode = |name: &str| {
            let data = fs::metadata(var.join(name)).unwrap();
            data.permissions().mode() & 0o7777
        };
        assert_eq!((mode("log"), mode("tmp")), (0o755, 0o1777));
        fs::set_permissions(var.join("log"), fs::Permissions::from_mode(0o700)).unwrap();
        furnish(&var).unwrap();
        assert_eq!(mode("log"), 0o700);
        assert_eq!(fs::read_link(var.join("run")).unwrap(), Path::new("../run"));
        fs::remove_dir_all(&var).unwrap();
    }

    #[test]
    fn the_machine_id_stays_and_a_broken_one_is_made_anew() {
        let folder = std::env::temp_dir().join(format!("skep-init-{}", std::process::id()));
        let (var, etc) = (folder.join("var"), folder.join("etc"));
        fs::create_dir_all(&etc).unwrap();
        let boot = || {
            let _ = fs::remove_file(etc.join("machine-id"));
            machine_id(&var, &etc).unwrap();
            fs::read_to_string(etc.join("machine-id")).unwrap()
        };
        let first = boot();
        assert!(is_machine_id(first.trim_end()));
        assert_eq!(boot(), first);
        fs::write(var.join("lib/machine-id"), "short").unwrap();
        let second = boot();
        assert!(second != first && is_machine_id(second.trim_end()));
        fs::remove_dir_all(&folder).unwrap();
    }
}
