//! The mounts of the initrd, and the step from it into the root.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::mount::{MountFlags, mount_move};

use crate::failure::{Doing as _, Result};

/// The file systems of the kernel, which move along into the root.
const MOVED: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];

/// Mounts one file system; the folder must be there.
pub(crate) fn mount(
    source: &str,
    target: &Path,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> Result<()> {
    let doing = || format!("mount {source} ({kind}) on {}", target.display());
    let data = CString::new(data).doing(doing)?;
    rustix::mount::mount(source, target, kind, flags, data.as_c_str()).doing(doing)
}

/// proc, sys, dev and run, as systemd would mount them; it takes over what it finds.
pub(crate) fn kernel_file_systems() -> Result<()> {
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let tmp = MountFlags::NOSUID | MountFlags::NODEV;
    for folder in MOVED {
        fs::create_dir_all(folder).doing(|| format!("make {folder}"))?;
    }
    mount(
        "devtmpfs",
        Path::new("/dev"),
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    )?;
    mount("proc", Path::new("/proc"), "proc", strict, "")?;
    mount("sysfs", Path::new("/sys"), "sysfs", strict, "")?;
    mount(
        "tmpfs",
        Path::new("/run"),
        "tmpfs",
        tmp,
        "mode=0755,size=20%,nr_inodes=800k",
    )?;
    // Secrets may stand on the command line. The mode belongs to the file in every instance of procfs.
    fs::set_permissions("/proc/cmdline", fs::Permissions::from_mode(0o400))
        .doing(|| "hide /proc/cmdline".to_owned())
}

/// `/etc` of the root, writable until the next boot.
pub(crate) fn volatile_etc(root: &Path) -> Result<()> {
    let base = Path::new("/run/skep-init");
    let (upper, work) = (base.join("etc"), base.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder).doing(|| format!("make {}", folder.display()))?;
    }
    fs::set_permissions(base, fs::Permissions::from_mode(0o700))
        .doing(|| format!("set the mode of {}", base.display()))?;
    let etc = root.join("etc");
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        etc.display(),
        upper.display(),
        work.display()
    );
    mount(
        "etc",
        &etc,
        "overlay",
        MountFlags::NOSUID | MountFlags::NODEV,
        &data,
    )
}

/// `/tmp` of the root, in memory.
pub(crate) fn temporary(root: &Path) -> Result<()> {
    let data = "mode=1777,size=50%,nr_inodes=1m";
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", &root.join("tmp"), "tmpfs", flags, data)
}

/// Makes `root` the root, with the kernel's file systems in it; what the initrd held in memory is given back.
pub(crate) fn switch_root(root: &Path) -> Result<()> {
    for folder in MOVED {
        let target = root.join(folder.trim_start_matches('/'));
        mount_move(folder, &target).doing(|| format!("move {folder} to {}", target.display()))?;
    }
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    let doing = || format!("make {} the root", root.display());
    rustix::process::chdir(root).doing(doing)?;
    mount_move(".", "/").doing(doing)?;
    rustix::process::chroot(".").doing(doing)?;
    rustix::process::chdir("/").doing(doing)
}
