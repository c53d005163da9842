//! What is on disk for a container before its shim starts: directories, the files bound over the image's own, filled
//! volumes, and `config.json`. The root itself is mounted without a place and travels to the shim as a descriptor.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{RootBuilder, Spec, UserBuilder};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};
use skep_core::worker::container::exec;
use skep_core::worker::container::plan::{ContainerId, ContainerPlan, VolumeUse};
use skep_core::worker::container::user::{self, User};
use skep_core::worker::dependencies::Contents;

use super::cgroup::Delegated;
use super::copy::copy_tree;
use super::protocol::{self, PROVIDED, ROOTFS, SETTINGS, Settings};
use super::provided;
use super::{Dirs, LOG_SUFFIX};
use crate::error::{Context, HostError, Result};
use crate::rooted::{self, Rooted};

/// The plan, in the container's directory on the tmpfs.
const PLAN: &str = "container.json";
/// There once skepd has seen the container created.
const CREATED: &str = "created";
/// In an anonymous volume: the container it goes with.
const ANONYMOUS: &str = ".anonymous";
/// Of an image's `/etc/passwd` and `/etc/group` this much is read.
const MAX_USER_FILE: u64 = 1024 * 1024;
/// A plan is never larger.
const MAX_PLAN: u64 = 4 * 1024 * 1024;

/// Mounts without a place, which the shim attaches.
pub(super) struct Mounted {
    /// The container's root.
    pub(super) root: OwnedFd,
    /// Its secrets and configs, if it has any.
    pub(super) provided: Option<OwnedFd>,
}

/// Paths of one container.
#[derive(Clone, Debug)]
pub(super) struct Bundle {
    /// On the tmpfs.
    pub(super) run: PathBuf,
    /// On disk.
    pub(super) state: PathBuf,
    volumes: PathBuf,
    id: ContainerId,
}

impl Bundle {
    /// Where the container `id` is, or would be.
    pub(super) fn new(dirs: &Dirs, id: &ContainerId) -> Self {
        Self {
            run: dirs.run.join(id.as_str()),
            state: dirs.state.join(id.as_str()),
            volumes: dirs.volumes.clone(),
            id: id.clone(),
        }
    }

    /// The current log file.
    pub(super) fn log(&self) -> PathBuf {
        self.state.join(format!("{}{LOG_SUFFIX}", self.id))
    }

    /// Whose it is.
    pub(super) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Makes the directory on the tmpfs, which must not be there: that is what makes the id unique.
    pub(super) fn claim(&self) -> Result<()> {
        make_private_dir(&self.run)
    }

    /// Writes everything and mounts what has no place.
    pub(super) fn prepare(
        &self,
        plan: &ContainerPlan,
        contents: &Contents,
        layers: &[PathBuf],
        cgroups: &Delegated,
    ) -> Result<Mounted> {
        write_json(&self.run.join(PLAN), plan)?;
        make_dir(&self.run.join(ROOTFS))?;
        for part in ["", "upper", "work"] {
            make_dir(&self.state.join(part))?;
        }
        self.write_etc(plan)?;
        let root = self.mount_root(layers)?;
        check_mount_points(&root)?;
        for volume in &plan.volumes {
            self.make_volume(volume, &root)?;
        }
        let spec = self.complete_spec(plan, &root)?;
        write_json(&self.run.join("config.json"), &spec)?;
        cgroups.shim(&self.id).make()?;
        cgroups.container(&self.id).make()?;
        write_json(&self.run.join(SETTINGS), &self.settings(plan, cgroups))?;
        Ok(Mounted {
            root: root.into_fd(),
            provided: provided::make(plan, contents, &self.run)?,
        })
    }

    fn settings(&self, plan: &ContainerPlan, cgroups: &Delegated) -> Settings {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Settings {
            id: self.id.to_string(),
            shim_cgroup: text(cgroups.shim(&self.id).dir()),
            container_cgroup: text(cgroups.container(&self.id).dir()),
            log: (plan.log.max_files > 0).then(|| protocol::Log {
                path: text(&self.log()),
                max_size: plan.log.max_size,
                max_files: plan.log.max_files,
            }),
            tty: plan.stdio.tty,
            open_stdin: plan.stdio.open_stdin,
        }
    }

    fn write_etc(&self, plan: &ContainerPlan) -> Result<()> {
        let files = [
            ("hosts", &plan.files.hosts),
            ("hostname", &plan.files.hostname),
            ("resolv.conf", &plan.files.resolv_conf),
        ];
        for (name, content) in files {
            if let Some(content) = content {
                let path = self.state.join(name);
                fs::write(&path, content).context("write", path.display())?;
            }
        }
        Ok(())
    }

    /// Mounts layers and writable layer by the file-descriptor mount API: no place in any mount table, no limit on the
    /// length of the options.
    fn mount_root(&self, layers: &[PathBuf]) -> Result<Rooted> {
        let mount = || -> rustix::io::Result<OwnedFd> {
            let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
            mount::fsconfig_set_string(&context, "source", "overlay")?;
            for layer in layers {
                mount::fsconfig_set_string(&context, "lowerdir+", layer)?;
            }
            mount::fsconfig_set_string(&context, "upperdir", self.state.join("upper"))?;
            mount::fsconfig_set_string(&context, "workdir", self.state.join("work"))?;
            mount::fsconfig_create(&context)?;
            let flags = FsMountFlags::FSMOUNT_CLOEXEC;
            mount::fsmount(&context, flags, MountAttrFlags::empty())
        };
        let fd = mount().context("mount the root of container", self.id.short())?;
        Ok(Rooted::new(fd))
    }

    /// Adds what only the mounted root can tell.
    fn complete_spec(&self, plan: &ContainerPlan, root: &Rooted) -> Result<Spec> {
        let user = find_user(root, &plan.user, &plan.groups)
            .context("create container", self.id.short())?;
        let mut spec = plan.spec.clone();
        let read_only = spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false);
        let path = RootBuilder::default().path(ROOTFS).readonly(read_only);
        spec.set_root(Some(
            path.build().context("describe the root of", &self.id)?,
        ));
        let mut process = spec.process().clone().unwrap_or_default();
        let cwd = process.cwd().clone();
        root.make_dirs(&cwd)
            .context("make the working directory", cwd.display())?;
        let groups = user.groups.clone();
        let numbers = UserBuilder::default()
            .uid(user.uid)
            .gid(user.gid)
            .additional_gids(groups);
        process.set_user(numbers.build().context("describe the user of", &self.id)?);
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", user.home));
        }
        process.set_env(Some(env));
        exec::limit_capabilities(&mut process, bounding_set()?);
        spec.set_process(Some(process));
        check_binds(&spec, &self.run.join(PROVIDED))?;
        Ok(spec)
    }

    fn make_volume(&self, volume: &VolumeUse, root: &Rooted) -> Result<()> {
        let dir = self.volumes.join(&volume.name);
        let data = dir.join("_data");
        fs::create_dir_all(&data).context("make volume", &volume.name)?;
        if volume.anonymous {
            let owner = dir.join(ANONYMOUS);
            fs::write(&owner, self.id.as_str()).context("make volume", &volume.name)?;
        }
        let is_empty = fs::read_dir(&data)
            .context("read volume", &volume.name)?
            .next()
            .is_none();
        if volume.copy && is_empty {
            copy_tree(root, &volume.destination, &data)
                .context("copy the image's content to volume", &volume.name)?;
        }
        Ok(())
    }

    /// Notes that the container is whole: from now on its end is an end, not a failed beginning.
    pub(super) fn mark_created(&self) -> Result<()> {
        let path = self.run.join(CREATED);
        fs::write(&path, b"").context("write", path.display())
    }

    /// Whether [`Self::mark_created`] was done.
    pub(super) fn was_created(&self) -> bool {
        self.run.join(CREATED).exists()
    }

    /// The plan of a container that exists.
    pub(super) fn plan(&self) -> Result<Option<ContainerPlan>> {
        read_json(&self.run.join(PLAN))
    }

    /// The specification a container was made with.
    pub(super) fn spec(&self) -> Result<Option<Spec>> {
        read_json(&self.run.join("config.json"))
    }

    /// The exit status, once there is one.
    pub(super) fn exit(&self) -> Result<Option<protocol::Exit>> {
        read_json(&self.run.join(protocol::EXIT))
    }

    /// Writes an exit status that no shim could write.
    pub(super) fn write_exit(&self, exit: &protocol::Exit) -> Result<()> {
        let path = self.run.join(protocol::EXIT);
        let new = self.run.join("exit.json.host");
        write_json(&new, exit)?;
        fs::rename(&new, &path).context("write", path.display())
    }

    /// Removes all of it, what makes the container known last. Whatever is not there is fine.
    pub(super) fn remove(&self) -> Result<()> {
        remove_tree(&self.state)?;
        remove_tree(&self.run)
    }
}

/// Finds a user in a root.
pub(super) fn find_user(root: &Rooted, user: &str, groups: &[String]) -> Result<User> {
    let read = |path: &str| -> Result<String> {
        let content = root
            .read(Path::new(path), MAX_USER_FILE)
            .context("read", path)?;
        Ok(String::from_utf8_lossy(&content.unwrap_or_default()).into_owned())
    };
    user::resolve(user, groups, &read("etc/passwd")?, &read("etc/group")?).context("use user", user)
}

/// The capabilities that this process could pass on, a bit for each number.
pub(super) fn bounding_set() -> Result<u64> {
    const STATUS: &str = "/proc/self/status";
    let status = fs::read_to_string(STATUS).context("read", STATUS)?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    u64::from_str_radix(line.unwrap_or_default().trim(), 16).context("read CapBnd in", STATUS)
}

/// Refuses an image whose `/dev`, `/proc` or `/sys` is no directory. Where `/dev` is a link, libcontainer would make links
/// of its own at what the link names, looked up on the node.
fn check_mount_points(root: &Rooted) -> Result<()> {
    for name in ["dev", "proc", "sys"] {
        let kind = match rustix::fs::statat(root.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error).context("look at", format!("/{name} of the image")),
        };
        if kind != FileType::Directory {
            let why = format!("/{name} of the image is not an ordinary directory");
            return Err(HostError::new("mount", format!("/{name}"), why));
        }
    }
    Ok(())
}

/// Docker's word for a bind mount of what is not there; libcontainer would say less. What is below `provided` is there
/// for the shim only.
fn check_binds(spec: &Spec, provided: &Path) -> Result<()> {
    for mount in spec.mounts().iter().flatten() {
        let is_bind = mount.typ().as_deref() == Some("bind");
        let source = mount.source().as_ref().filter(|_| is_bind);
        let source = source.filter(|source| !source.starts_with(provided));
        if let Some(source) = source.filter(|source| !source.exists()) {
            let why = format!("bind source path does not exist: {}", source.display());
            let target = mount.destination().display().to_string();
            return Err(HostError::new("mount", target, why));
        }
    }
    Ok(())
}

/// Anonymous volumes and the containers they go with.
pub(super) fn anonymous_volumes(volumes: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(volumes).into_iter().flatten().flatten();
    let owned = |path: PathBuf| {
        let owner = fs::read_to_string(path.join(ANONYMOUS)).ok()?;
        Some((path, owner))
    };
    entries.filter_map(|entry| owned(entry.path())).collect()
}

/// Removes a tree; one that is not there is fine. Links in it are not followed.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    rooted::remove_tree(path).context("remove", path.display())
}

fn make_private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .context("make container directory", path.display())
}

/// Makes a directory and its parents, where they are not there.
pub(super) fn make_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .context("make directory", path.display())
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec(value).context("write", path.display())?;
    fs::write(path, text).context("write", path.display())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    use std::io::Read;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("read", path.display()),
    };
    let mut text = Vec::new();
    file.take(MAX_PLAN)
        .read_to_end(&mut text)
        .context("read", path.display())?;
    serde_json::from_slice(&text)
        .map(Some)
        .context("read", path.display())
}
