//! Debian packages: those that the host needs, and those that are only downloaded and unpacked.
//!
//! Downloads go through apt itself with a folder of its own below `.lab` as its whole world, so that signatures are
//! checked and dependencies resolved as always, for any suite, without root and without touching the host's apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::paths::Paths;
use crate::process::run;
use crate::progress::Step;

/// The suite that the image is made of, and so the tools to look into it.
pub const IMAGE_SUITE: &str = "trixie";

/// Debian's keys, under the name of Debian 12 or that of later releases.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
const LISTS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A package the host needs: its name, and a file that is there once it is installed.
type HostPackage = (&'static str, &'static str);

/// What it takes to run VMs.
pub const FOR_MACHINES: &[HostPackage] = &[
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    ("qemu-utils", "/usr/bin/qemu-img"),
];

/// What it takes to compile all of Skep.
pub const FOR_COMPILING: &[HostPackage] = &[
    ("gcc", "/usr/bin/gcc"),
    ("libc6-dev", "/usr/lib/x86_64-linux-gnu/crt1.o"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("libelf-dev", "/usr/include/gelf.h"),
    ("zlib1g-dev", "/usr/include/zlib.h"),
];

/// What mkosi needs of the host to make its tools; all later steps of the image use those.
pub const FOR_MKOSI: &[HostPackage] = &[
    ("python3", "/usr/bin/python3"),
    (
        "debian-archive-keyring",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    ),
    ("gpgv", "/usr/bin/gpgv"),
    ("tar", "/usr/bin/tar"),
    ("xz-utils", "/usr/bin/xz"),
    ("zstd", "/usr/bin/zstd"),
    ("systemd", "/usr/bin/systemctl"),
    ("kmod", "/usr/sbin/modprobe"),
];

/// What it takes to boot by UEFI: the firmware's code.
pub const FIRMWARE: HostPackage = ("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd");

/// What the tests look with from outside.
pub const FOR_TESTS: &[HostPackage] = &[
    ("iproute2", "/usr/bin/ip"),
    ("nftables", "/usr/sbin/nft"),
    ("curl", "/usr/bin/curl"),
    ("procps", "/usr/bin/pgrep"),
    ("dbus-daemon", "/usr/bin/dbus-daemon"),
    FIRMWARE,
];

/// All that a run of the tests may come to need: asked for at once, so that one command installs it.
pub const FOR_EVERYTHING: [&[HostPackage]; 4] = [FOR_MACHINES, FOR_COMPILING, FOR_MKOSI, FOR_TESTS];

/// Installs the host packages that are missing, when we are root.
///
/// # Errors
/// As another user, the exact command that installs them.
pub fn ensure_installed(wanted: &[HostPackage]) -> Result<()> {
    let missing = self::missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        bail!(
            "packages are missing; install them with: sudo {} (after sudo apt-get update)",
            install_command(&missing)
        );
    }
    install(&missing)?;
    // A package of a later release that does not fit what was asked for makes way for it: apt removes it, and what it
    // brought is missing now.
    let displaced = self::missing(wanted);
    if !displaced.is_empty() {
        install(&displaced)?;
    }
    match self::missing(wanted) {
        left if left.is_empty() => Ok(()),
        left => bail!(
            "{} cannot be installed beside the rest; see what apt says to: {}",
            left.join(" "),
            install_command(&left)
        ),
    }
}

fn missing(wanted: &[HostPackage]) -> Vec<&'static str> {
    let absent = wanted.iter().filter(|(_, proof)| !present(proof));
    absent.map(|(name, _)| *name).collect()
}

fn install_command(names: &[&str]) -> String {
    format!(
        "apt-get install -y --no-install-recommends {}",
        names.join(" ")
    )
}

fn install(names: &[&str]) -> Result<()> {
    let step = Step::begin(format!("installing {}", names.join(" ")));
    let install = || {
        run(apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(names))
    };
    // A fresh machine has no package lists yet; one with old lists asks for files that are gone.
    if install().is_err() {
        run(apt_get().arg("update"))?;
        install().with_context(|| {
            format!("cannot install what is missing: {}", install_command(names))
        })?;
    }
    step.done();
    Ok(())
}

/// A file of the merged /usr or, on a host that still splits it, of the root.
fn present(proof: &str) -> bool {
    let split = proof.strip_prefix("/usr").unwrap_or(proof);
    let moved = proof.replace("/usr/bin/", "/usr/sbin/");
    [proof, split, &moved].iter().any(|p| Path::new(p).exists())
}

/// Whether this process may change the host.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "-q",
            "-o",
            "DPkg::Lock::Timeout=600",
            "-o",
            "Acquire::Retries=3",
        ])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The mirror that the host's own apt sources name for Debian; `SKEP_DEBIAN_MIRROR` goes before it.
///
/// # Errors
/// When no source of the host's release is found.
pub fn debian_mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("SKEP_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let codename = host_codename()?;
    source_of(&codename)?.with_context(|| {
        format!("no source of {codename} with component main in /etc/apt; set SKEP_DEBIAN_MIRROR")
    })
}

/// The mirror of Debian's security updates that the host uses, if it does.
///
/// # Errors
/// When the host's release is not known.
pub fn security_mirror() -> Result<Option<String>> {
    source_of(&format!("{}-security", host_codename()?))
}

/// The URI of the first of the host's apt sources for a suite.
fn source_of(suite: &str) -> Result<Option<String>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let uri = files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        match file.extension()?.to_str()? {
            "sources" => uri_in_stanzas(&text, suite),
            "list" => uri_in_lines(&text, suite),
            _ => None,
        }
    });
    uri.map(|uri| resolve_mirror_list(&uri)).transpose()
}

/// The host's release, by the name of its suite.
pub fn host_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no VERSION_CODENAME; Debian 12 or 13 is needed")
}

/// The URI of a deb822 stanza (sources.list(5)) of this suite.
fn uri_in_stanzas(text: &str, suite: &str) -> Option<String> {
    let mut stanzas = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.trim().is_empty() {
            true => stanzas.push(Vec::new()),
            false => stanzas.last_mut()?.push(line),
        }
    }
    stanzas.iter().find_map(|stanza| {
        let field = |name: &str| {
            stanza.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name: &str, word: &str| {
            field(name).is_some_and(|value| value.split_whitespace().any(|w| w == word))
        };
        let wanted = has("Types", "deb") && has("Suites", suite) && has("Components", "main");
        let uri = field("URIs")?.split_whitespace().next()?;
        wanted.then(|| uri.trim_end_matches('/').to_owned())
    })
}

/// The URI of a one-line source of this suite.
fn uri_in_lines(text: &str, suite: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let (uri, rest) = words.split_first()?;
        let (named, components) = rest.split_first()?;
        (*named == suite && components.contains(&"main"))
            .then(|| uri.trim_end_matches('/').to_owned())
    })
}

/// Debian's cloud images name a file with mirrors: take its first.
fn resolve_mirror_list(uri: &str) -> Result<String> {
    let Some(file) = uri.strip_prefix("mirror+file:") else {
        return Ok(uri.to_owned());
    };
    let file = format!("/{}", file.trim_start_matches('/'));
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    text.split_whitespace()
        .find(|word| word.starts_with("http"))
        .map(|word| word.trim_end_matches('/').to_owned())
        .with_context(|| format!("{file} names no mirror"))
}

/// One Debian suite, read through apt in a folder of ours.
pub struct Suite {
    name: String,
    root: PathBuf,
}

impl Suite {
    /// Opens a suite, fetching its package lists if those at hand are older than a day.
    pub fn open(paths: &Paths, name: &str) -> Result<Suite> {
        let suite = Suite {
            name: name.to_owned(),
            root: paths.folder(&format!("apt/{name}"))?,
        };
        let stamp = suite.root.join("updated");
        let fresh = fs::metadata(&stamp)
            .and_then(|data| data.modified())
            .is_ok_and(|time| {
                SystemTime::now().duration_since(time).unwrap_or_default() < LISTS_KEPT
            });
        if fresh {
            return Ok(suite);
        }
        suite.prepare(&debian_mirror()?)?;
        let step = Step::begin(format!("fetching the package lists of {name}"));
        run(suite.apt_get().arg("update"))?;
        fs::write(stamp, "")?;
        step.done();
        Ok(suite)
    }

    fn prepare(&self, mirror: &str) -> Result<()> {
        for folder in [
            "etc/apt/sources.list.d",
            "etc/apt/preferences.d",
            "var/lib/apt/lists/partial",
            "var/lib/dpkg",
            "var/cache/apt/archives/partial",
        ] {
            fs::create_dir_all(self.root.join(folder))?;
        }
        fs::write(self.root.join("var/lib/dpkg/status"), "")?;
        let keyring = KEYRINGS
            .iter()
            .find(|path| Path::new(path).exists())
            .context("Debian's keys are missing: apt-get install debian-archive-keyring")?;
        fs::write(
            self.root.join("etc/apt/sources.list"),
            format!("deb [signed-by={keyring}] {mirror} {} main\n", self.name),
        )?;
        Ok(())
    }

    fn apt_get(&self) -> Command {
        let mut command = apt_get();
        let option = |key: &str, path: &str| format!("{key}={}", self.root.join(path).display());
        for setting in [
            option("Dir::Etc::sourcelist", "etc/apt/sources.list"),
            option("Dir::Etc::sourceparts", "etc/apt/sources.list.d"),
            option("Dir::Etc::preferences", "etc/apt/preferences"),
            option("Dir::Etc::preferencesparts", "etc/apt/preferences.d"),
            option("Dir::State", "var/lib/apt"),
            option("Dir::State::status", "var/lib/dpkg/status"),
            option("Dir::Cache", "var/cache/apt"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }

    /// Downloads packages and unpacks them into `folder`; gives nothing to dpkg and runs no script of theirs.
    pub fn unpack(&self, names: &[&str], folder: &Path) -> Result<()> {
        let archives = folder.with_extension("debs");
        fs::create_dir_all(&archives)?;
        run(self
            .apt_get()
            .arg("download")
            .args(names)
            .current_dir(&archives))
        .with_context(|| format!("cannot download {} of {}", names.join(" "), self.name))?;
        unpack_all(&archives, folder)
    }

    /// The same with all that the packages depend on: the content of a small Debian system.
    pub fn unpack_with_dependencies(&self, names: &[&str], folder: &Path) -> Result<()> {
        let archives = folder.with_extension("debs");
        fs::create_dir_all(archives.join("partial"))?;
        run(self
            .apt_get()
            .args([
                "-o",
                &format!("Dir::Cache::archives={}", archives.display()),
            ])
            .args([
                "install",
                "-y",
                "--download-only",
                "--no-install-recommends",
            ])
            .args(names))
        .with_context(|| format!("cannot download {} of {}", names.join(" "), self.name))?;
        unpack_all(&archives, folder)
    }
}

/// Unpacks every .deb in a folder; base-files first, since it brings the links of the merged /usr.
fn unpack_all(archives: &Path, folder: &Path) -> Result<()> {
    let mut debs: Vec<PathBuf> = fs::read_dir(archives)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "deb"))
        .collect();
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    debs.sort_by_key(|path| {
        let name = name(path).unwrap_or_default();
        (!name.starts_with("base-files_"), name)
    });
    fs::create_dir_all(folder)?;
    for deb in debs {
        let status = Command::new("dpkg-deb")
            .arg("--extract")
            .args([&deb, folder])
            .stdin(Stdio::null())
            .status()
            .context("cannot run dpkg-deb")?;
        if !status.success() {
            bail!("dpkg-deb cannot unpack {}", deb.display());
        }
    }
    fs::remove_dir_all(archives)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_release_itself() {
        let text = "Types: deb\nURIs: http://a.example/x\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb\n# note\nURIs: http://b.example/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                    Types: deb\nURIs: http://b.example/debian-security\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(
            uri_in_stanzas(text, "bookworm").as_deref(),
            Some("http://b.example/debian")
        );
        assert_eq!(uri_in_stanzas(text, "trixie"), None);
    }

    #[test]
    fn one_line_sources_may_have_options() {
        let text = "# deb http://no.example/debian bookworm main\n\
                    deb https://other.example/apt cloud-sdk-bookworm main\n\
                    deb [arch=amd64 signed-by=/k] http://c.example/debian bookworm contrib main\n";
        assert_eq!(
            uri_in_lines(text, "bookworm").as_deref(),
            Some("http://c.example/debian")
        );
    }
}
