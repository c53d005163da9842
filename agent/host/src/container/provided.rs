//! The secrets and configs of a container: files on a tmpfs of its own, which has no place in the node's mount table. It
//! travels to the shim as a descriptor and disappears with the last process that sees it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, Gid, Mode, OFlags, Uid};
use rustix::mount::{self, FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags};
use skep_core::worker::container::plan::{ContainerPlan, PROVIDED, ProvidedFile};
use skep_core::worker::dependencies::Contents;

use super::bundle::make_dir;
use crate::error::{Context, HostError, Result};

/// What the kernel gives memory in.
const PAGE: usize = 4096;

/// Makes the files of a plan, and the directory in `run` where the shim attaches them; nothing if there are none.
pub(super) fn make(
    plan: &ContainerPlan,
    contents: &Contents,
    run: &Path,
) -> Result<Option<OwnedFd>> {
    if plan.provided.is_empty() {
        return Ok(None);
    }
    let files = pair(&plan.provided, contents)?;
    make_dir(&run.join(PROVIDED))?;
    let made = mount(&files).context("make the secrets of container", plan.id.short())?;
    Ok(Some(made))
}

type Pair<'a> = (&'a ProvidedFile, &'a [u8]);

fn pair<'a>(files: &'a [ProvidedFile], contents: &'a Contents) -> Result<Vec<Pair<'a>>> {
    let content = |file: &'a ProvidedFile| match contents.get(&file.dependency) {
        Some(content) => Ok((file, content.bytes())),
        None => Err(HostError::new(
            "make the file of",
            file.dependency.to_string(),
            "its content is not here",
        )),
    };
    files.iter().map(content).collect()
}

fn mount(files: &[Pair<'_>]) -> std::io::Result<OwnedFd> {
    let context = mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    mount::fsconfig_set_string(&context, "source", "skep")?;
    mount::fsconfig_set_string(&context, "mode", "0700")?;
    mount::fsconfig_set_string(&context, "size", size(files).to_string())?;
    // The directory itself is one more.
    mount::fsconfig_set_string(&context, "nr_inodes", (files.len() + 1).to_string())?;
    mount::fsconfig_set_flag(&context, "noswap")?;
    mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    for (file, content) in files {
        write(&mount, file, content)?;
    }
    // The file system itself becomes read-only: no mount of it, whoever makes it, can be written.
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = mount::fspick(&mount, "", flags)?;
    mount::fsconfig_set_flag(&context, "ro")?;
    // Left out, it would mean that swapping begins, which is refused.
    mount::fsconfig_set_flag(&context, "noswap")?;
    mount::fsconfig_reconfigure(&context)?;
    Ok(mount)
}

fn size(files: &[Pair<'_>]) -> usize {
    let pages = files
        .iter()
        .map(|(_, content)| content.len().div_ceil(PAGE));
    // 0 would mean no bound.
    pages.sum::<usize>().max(1) * PAGE
}

fn write(mount: &OwnedFd, file: &ProvidedFile, content: &[u8]) -> std::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = fs::openat(mount, file.name.as_str(), flags, Mode::from_raw_mode(0o600))?;
    let mut made = File::from(made);
    made.write_all(content)?;
    fs::fchown(
        &made,
        Some(Uid::from_raw(file.uid)),
        Some(Gid::from_raw(file.gid)),
    )?;
    Ok(fs::fchmod(&made, Mode::from_raw_mode(file.mode))?)
}

#[cfg(test)]
mod tests {
    use skep_core::api::DependencyId;
    use skep_core::id::Id;

    use super::*;

    fn file(name: &str, secret: u128) -> ProvidedFile {
        ProvidedFile {
            name: name.to_owned(),
            dependency: DependencyId::Secret(Id::from_entropy(secret)),
            uid: 1,
            gid: 2,
            mode: 0o440,
        }
    }

    #[test]
    fn a_content_that_is_not_here_is_named() {
        let files = [file("0", 1)];
        let error = pair(&files, &Contents::new()).unwrap_err().chain();
        assert!(
            error.contains("secret 0000000000000000000000001"),
            "{error}"
        );
    }

    #[test]
    fn memory_is_bounded_by_what_the_files_need() {
        let one = file("0", 1);
        let sizes = |lengths: &[usize]| {
            let contents: Vec<Vec<u8>> = lengths.iter().map(|length| vec![0; *length]).collect();
            let pairs: Vec<Pair<'_>> = contents.iter().map(|it| (&one, &it[..])).collect();
            size(&pairs)
        };
        assert_eq!(sizes(&[0]), 4096);
        assert_eq!(sizes(&[1, 4096, 4097]), 4 * 4096);
    }

    #[test]
    fn the_shim_attaches_it_where_the_plan_says() {
        assert_eq!(PROVIDED, super::super::protocol::PROVIDED);
    }
}
