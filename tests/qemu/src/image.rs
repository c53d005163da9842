//! Builds the image: mkosi's Debian 13 with our three programs, and looks at what came out.
//!
//! Everything made here lies in the git-ignored `build/`; a build does again only what its inputs ask for:
//! mkosi itself and its tools are kept, the packages are kept by mkosi, and an image whose inputs have not changed
//! is given as it is.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::archive::sorted_tree;
use crate::packages::{self, FOR_MKOSI, IMAGE_SUITE, Suite, ensure_installed};
use crate::paths::{Paths, write_atomically};
use crate::process::run;

mod contents;
mod formats;

pub use contents::check_executables;

/// What a built image consists of. All paths are absolute.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// The kernel, for QEMU direct boot (`-kernel`).
    pub kernel: PathBuf,
    /// The initrd of skep-init and its modules (`-initrd`).
    pub initrd: PathBuf,
    /// The kernel command line that the image needs (`-append`), with `roothash=`; a node's own keys are appended to it.
    pub cmdline: String,
    /// The raw disk: ESP, root slots A and B with their verity data. Sparse. Nodes boot from copies or overlays
    /// of it, grown to hold the state partition (at least 1 GiB more), which the first boot makes.
    pub disk: PathBuf,
    /// The unified kernel image, as it lies in the ESP.
    pub uki: PathBuf,
    /// The root file system of slot A, unpacked into a folder to be looked at.
    pub root: PathBuf,
    /// Sizes against their budgets.
    pub sizes: Sizes,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// The root file system (erofs) with its verity data.
    pub root: u64,
    /// The unified kernel image.
    pub uki: u64,
    /// The release binary of skepd.
    pub agent: u64,
}

const MIB: u64 = 1024 * 1024;
/// Budget of root and UKI together.
const IMAGE_BUDGET: u64 = 60 * MIB;
/// Budget of skepd.
const AGENT_BUDGET: u64 = 20 * MIB;
/// The version that the image carries.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// In the folder of an image that is whole.
const COMPLETE: &str = "complete";
/// Machines that run lie over the disk of the image that they were started with: so many images are kept.
const IMAGES_KEPT: usize = 4;
/// skep-init is static, so that the initrd needs no libraries; glibc wants the target named for that.
const INIT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds what is not up to date and gives the image; `say` gets one line per step.
///
/// # Errors
/// A host package that is missing and may not be installed, a step that failed (one line, with its log file),
/// a size over its budget.
pub fn build(repository: &Path, say: &dyn Fn(&str)) -> Result<Image> {
    let build = Build {
        repository,
        folder: repository.join("build"),
        say,
    };
    fs::create_dir_all(&build.folder)
        .with_context(|| format!("cannot make {}", build.folder.display()))?;
    // Two builds at once would take each other's files away; the second one waits and finds everything done.
    let lock = File::create(build.folder.join("lock")).context("cannot make build/lock")?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .context("cannot lock build/lock")?;
    build.programs()?;
    build.stage()?;
    let made = build.folder.join("images").join(build.inputs()?);
    if made.join(COMPLETE).exists()
        && let Ok(image) = build.result(&made)
    {
        say("image: nothing has changed");
        build.point_to(&made)?;
        return Ok(image);
    }
    ensure_installed(FOR_MKOSI)?;
    build.mkosi()?;
    build.tools()?;
    say("image: making the file systems and the unified kernel");
    fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
    let output = format!("--output-directory={}", made.display());
    let version = format!("--image-version={VERSION}");
    build.run_mkosi(&[&output, &version, "-f", "build"], "image.log")?;
    build.unpack(&made)?;
    let image = build.result(&made)?;
    build.report(&image)?;
    write_atomically(&made.join(COMPLETE), b"")?;
    build.point_to(&made)?;
    build.forget_old()?;
    Ok(image)
}

struct Build<'a> {
    repository: &'a Path,
    folder: PathBuf,
    say: &'a dyn Fn(&str),
}

impl Build<'_> {
    fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.repository.join("target"), PathBuf::from)
    }

    fn programs(&self) -> Result<()> {
        ensure_installed(packages::FOR_COMPILING)?;
        (self.say)("image: compiling skepd and skep-shim (release)");
        let bins = ["skepd", "skep-shim", "skep-hold"].map(|name| ["--bin", name]);
        let all = [
            &["-p", "skepd", "-p", "skep-shim", "-p", "skep-init"],
            bins.as_flattened(),
        ];
        self.cargo(&all.concat(), "")?;
        (self.say)("image: compiling skep-init (release, static)");
        let init = [
            "-p",
            "skep-init",
            "--bin",
            "skep-init",
            "--target",
            INIT_TARGET,
        ];
        self.cargo(&init, "-C target-feature=+crt-static")
    }

    fn cargo(&self, arguments: &[&str], flags: &str) -> Result<()> {
        let paths = Paths {
            repository: self.repository.to_path_buf(),
            lab: self.folder.clone(),
        };
        let mut command = crate::check::cargo(&paths);
        command
            .args(["build", "--release", "--locked"])
            .args(arguments)
            .arg("--target-dir")
            .arg(self.target())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if !flags.is_empty() {
            command.env("RUSTFLAGS", flags);
        }
        let status = command.status().context("cannot start cargo")?;
        if !status.success() {
            bail!("cargo build --release {} failed", arguments.join(" "));
        }
        Ok(())
    }

    /// The tree with our programs that mkosi copies into the root, and skep-init for the initrd.
    fn stage(&self) -> Result<()> {
        let stage = self.folder.join("stage");
        let release = self.target().join("release");
        let init = self.target().join(INIT_TARGET).join("release/skep-init");
        for (from, to) in [
            (release.join("skepd"), "root/usr/bin/skepd"),
            (release.join("skep-shim"), "root/usr/libexec/skep/skep-shim"),
            (release.join("skep-hold"), "root/usr/libexec/skep/skep-hold"),
            (init, "skep-init"),
        ] {
            let to = stage.join(to);
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::copy(&from, &to)
                .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        }
        let cli = stage.join("root/usr/bin/skep");
        if !cli.is_symlink() {
            std::os::unix::fs::symlink("skepd", &cli).context("cannot link skep")?;
        }
        Ok(())
    }

    /// One hash over all that the image is made of, except Debian's packages.
    fn inputs(&self) -> Result<String> {
        let mut files = vec![self.repository.join("mkosi.conf")];
        for part in ["image", "systemd", "build/stage"] {
            files.extend(sorted_tree(&self.repository.join(part))?);
        }
        let mut hash = Sha256::new();
        for path in files {
            let data = fs::symlink_metadata(&path)?;
            if data.is_file() {
                hash.update(path.as_os_str().as_encoded_bytes());
                hash.update(data.permissions().mode().to_le_bytes());
                hash.update(data.len().to_le_bytes());
                hash.update(fs::read(&path)?);
            }
        }
        Ok(hex(&hash.finalize()[..8]))
    }

    /// mkosi as a package of the image's own release; Debian 12 has only older ones, and could not install this one.
    fn mkosi(&self) -> Result<()> {
        let sources = self
            .folder
            .join("sandbox/etc/apt/sources.list.d/mkosi.sources");
        if let Some(folder) = sources.parent() {
            fs::create_dir_all(folder)?;
        }
        write_atomically(&sources, apt_sources()?.as_bytes())?;
        let folder = self.folder.join("mkosi");
        if folder.join("usr/bin/mkosi").exists() {
            return Ok(());
        }
        (self.say)("image: fetching mkosi");
        let paths = Paths {
            repository: self.repository.to_path_buf(),
            lab: self.folder.clone(),
        };
        let _ = fs::remove_dir_all(&folder);
        Suite::open(&paths, IMAGE_SUITE)?.unpack(&["mkosi"], &folder)
    }

    fn tools(&self) -> Result<()> {
        let stamp = self.folder.join("tools.inputs");
        let inputs = fs::read(self.repository.join("image/tools/mkosi.conf"))
            .context("cannot read image/tools/mkosi.conf")?;
        let made = self.folder.join("tools/tools/usr").is_dir();
        if made && fs::read(&stamp).is_ok_and(|old| old == inputs) {
            return Ok(());
        }
        (self.say)("image: making the tools that build it");
        self.run_mkosi(&["-C", "image/tools", "-f", "build"], "tools.log")?;
        write_atomically(&stamp, &inputs)
    }

    fn run_mkosi(&self, arguments: &[&str], log: &str) -> Result<()> {
        for folder in ["tools", "cache", "packages"] {
            fs::create_dir_all(self.folder.join(folder))?;
        }
        let log = self.folder.join(log);
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let modules = self.folder.join("mkosi/usr/lib/python3/dist-packages");
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-m", "mkosi"])
            .args(arguments)
            .current_dir(self.repository)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CI", "true")
            .env("PYTHONPATH", modules)
            // repart has no key for it: larger pieces compress better and are still read fast.
            .env(
                "SYSTEMD_REPART_MKFS_OPTIONS_EROFS",
                "-C16384 -Efragments,dedupe",
            )
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        for name in ["HOME", "http_proxy", "https_proxy", "no_proxy"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if command.status().context("cannot start python3")?.success() {
            return Ok(());
        }
        let said = fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        bail!(
            "mkosi failed: {} (all of it: {})",
            cause(&said),
            log.display()
        )
    }

    /// `build/image` leads to the newest image.
    fn point_to(&self, made: &Path) -> Result<()> {
        let (link, new) = (self.folder.join("image"), self.folder.join("image.new"));
        let target = made.strip_prefix(&self.folder)?;
        let _ = fs::remove_file(&new);
        if link.is_dir() && !link.is_symlink() {
            fs::remove_dir_all(&link)?;
        }
        std::os::unix::fs::symlink(target, &new)
            .and_then(|()| fs::rename(&new, &link))
            .with_context(|| format!("cannot link {}", link.display()))
    }

    fn forget_old(&self) -> Result<()> {
        let mut images: Vec<_> = fs::read_dir(self.folder.join("images"))?
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        images.sort();
        for (_, folder) in images.iter().rev().skip(IMAGES_KEPT) {
            fs::remove_dir_all(folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        Ok(())
    }

    /// Unpacks the root with the tool that belongs to the one that packed it.
    fn unpack(&self, made: &Path) -> Result<()> {
        let tree = made.join("tree");
        let _ = fs::remove_dir_all(&tree);
        let tools = self.folder.join("tools/tools/usr");
        let mut fsck = Command::new(tools.join("lib64/ld-linux-x86-64.so.2"));
        fsck.arg("--library-path")
            .arg(tools.join("lib/x86_64-linux-gnu"))
            .arg(tools.join("bin/fsck.erofs"))
            .arg(format!("--extract={}", tree.display()))
            .args(["--preserve-perms", "--overwrite"])
            .arg(made.join("skep.root.raw"));
        run(&mut fsck).map(drop)
    }

    /// What lies in the folder of an image.
    fn result(&self, made: &Path) -> Result<Image> {
        let file = |name: &str| {
            let path = made.join(format!("skep.{name}"));
            match path.exists() {
                true => Ok(path),
                false => bail!("the build left no {}", path.display()),
            }
        };
        let uki = file("efi")?;
        let unified = fs::read(&uki)?;
        let cmdline = formats::pe_section(&unified, ".cmdline")
            .and_then(|text| std::str::from_utf8(text).ok())
            .with_context(|| format!("{} has no command line", uki.display()))?;
        let root = made.join("tree");
        if !root.join("usr").is_dir() {
            bail!("the build left no {}", root.display());
        }
        let sizes = Sizes {
            root: formats::erofs_size(&head(&file("root.raw")?)?)
                .context("the root is not erofs")?
                + formats::verity_size(&head(&file("verity.raw")?)?)
                    .context("the root has no verity data")?,
            uki: fs::metadata(&uki)?.len(),
            agent: fs::metadata(self.folder.join("stage/root/usr/bin/skepd"))?.len(),
        };
        Ok(Image {
            kernel: file("vmlinuz")?,
            initrd: file("initrd")?,
            cmdline: cmdline.trim_end_matches(['\0', '\n', ' ']).to_owned(),
            disk: file("raw")?,
            uki,
            root,
            sizes,
        })
    }

    /// Says the sizes; a size over its budget is an error.
    fn report(&self, image: &Image) -> Result<()> {
        let Sizes { root, uki, agent } = image.sizes;
        let mib = |bytes: u64| format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB);
        (self.say)(&format!(
            "image: root {}, UKI {} (together at most {}), agent {} (at most {})",
            mib(root),
            mib(uki),
            mib(IMAGE_BUDGET),
            mib(agent),
            mib(AGENT_BUDGET)
        ));
        if root + uki > IMAGE_BUDGET {
            bail!(
                "root and UKI take {}, more than {}",
                mib(root + uki),
                mib(IMAGE_BUDGET)
            );
        }
        if agent > AGENT_BUDGET {
            bail!(
                "skepd takes {}, more than {}",
                mib(agent),
                mib(AGENT_BUDGET)
            );
        }
        Ok(())
    }
}

/// The package sources of the image: its release from the mirror that the host uses itself.
fn apt_sources() -> Result<String> {
    let stanza = |uri: &str, suites: &str| {
        format!(
            "Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        )
    };
    let mut text = stanza(
        &packages::debian_mirror()?,
        &format!("{IMAGE_SUITE} {IMAGE_SUITE}-updates"),
    );
    if let Some(uri) = packages::security_mirror()? {
        text += &stanza(&uri, &format!("{IMAGE_SUITE}-security"));
    }
    Ok(text)
}

/// The line of a build's output that says best why it failed: apt's errors, then mkosi's own last words.
fn cause(output: &str) -> String {
    let lines: Vec<&str> = output
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    lines
        .iter()
        .find(|line| line.starts_with("E: ") || line.starts_with("Error: "))
        .or(lines
            .iter()
            .rev()
            .nth(1)
            .filter(|_| lines.last().is_some_and(|l| l.contains("non-zero"))))
        .or(lines.last())
        .map_or_else(
            || "it said nothing".to_owned(),
            |line| line.trim_start_matches('‣').trim().to_owned(),
        )
}

/// The first 4 KiB of a file.
fn head(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_line_that_says_it() {
        assert_eq!(
            cause(
                "‣ Installing\nE: Unable to locate package x\n‣ \"apt-get\" returned non-zero exit code 100.\n"
            ),
            "E: Unable to locate package x"
        );
        assert_eq!(
            cause("cp: cannot stat 'a'\n‣ \"/work/finalize\" returned non-zero exit code 1.\n"),
            "cp: cannot stat 'a'"
        );
        assert_eq!(cause("‣ no such key\n"), "no such key");
        assert_eq!(cause(""), "it said nothing");
    }
}
