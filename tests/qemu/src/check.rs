//! `check`: what must hold of the sources themselves. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::packages::{FOR_COMPILING, ensure_installed};
use crate::paths::Paths;
use crate::process::run;
use crate::progress::{Step, say};

/// Runs every check; the first that fails ends it.
pub fn run_all(paths: &Paths, all: bool) -> Result<()> {
    ensure_installed(FOR_COMPILING)?;
    let steps: [(&str, &[&str]); 4] = [
        ("format", &["fmt", "--all", "--check"]),
        (
            "clippy",
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        (
            "layers",
            &[
                "test",
                "--quiet",
                "--package",
                "skep-core",
                "--test",
                "layers",
            ],
        ),
        (
            "documentation",
            &["doc", "--quiet", "--workspace", "--no-deps"],
        ),
    ];
    for (name, arguments) in steps {
        let step = Step::begin(format!("check: {name}"));
        cargo_aloud(paths, arguments).with_context(|| format!("check {name}"))?;
        step.done();
    }
    let step = Step::begin("check: dependencies");
    dependencies(paths, all)?;
    step.done();
    say(
        "check: skipped: security advisories, their database is on the internet (cargo deny check advisories)",
    );
    Ok(())
}

/// Runs cargo with its words shown as they come; they are the explanation when it fails.
pub fn cargo_aloud(paths: &Paths, arguments: &[&str]) -> Result<()> {
    let status = cargo(paths)
        .args(arguments)
        .env("RUSTDOCFLAGS", "-D warnings")
        .stdin(std::process::Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .context("cannot run cargo")?;
    match status.success() {
        true => Ok(()),
        false => bail!("cargo {} failed", arguments.join(" ")),
    }
}

/// Cargo, in the repository, as if it were called from there: what the cargo that started us has set for us would
/// make it compile again what depends on the environment.
pub fn cargo(paths: &Paths) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(program);
    command.current_dir(&paths.repository);
    for (name, _) in std::env::vars() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|begin| name.starts_with(begin))
        {
            command.env_remove(name);
        }
    }
    command
}

fn dependencies(paths: &Paths, all: bool) -> Result<()> {
    let installed = || run(cargo(paths).args(["deny", "--version"])).is_ok();
    if all && !installed() {
        cargo_aloud(paths, &["install", "--locked", "cargo-deny"])?;
    }
    if installed() {
        let what = ["check", "bans", "licenses", "sources"];
        let head = ["deny", "--offline", "--config", "agent/deny.toml"];
        return cargo_aloud(paths, &[&head[..], &what[..]].concat());
    }
    say(
        "check: cargo-deny is not installed: licences are those that the crates declare, their texts are not read",
    );
    let rules = Rules::read(paths)?;
    let metadata = run(cargo(paths).args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut wrong = Vec::new();
    for package in packages {
        wrong.extend(rules.complaints(package));
    }
    wrong.extend(rules.duplicates(&run(cargo(paths).args([
        "tree",
        "--workspace",
        "--duplicates",
        "--edges",
        "normal,build",
        "--target",
        "x86_64-unknown-linux-gnu",
        "--depth",
        "0",
        "--prefix",
        "none",
    ]))?));
    match wrong.is_empty() {
        true => Ok(()),
        false => bail!("{}", wrong.join("; ")),
    }
}

/// The part of `agent/deny.toml` that is checked without cargo-deny.
struct Rules {
    licences: BTreeSet<String>,
    denied: BTreeSet<String>,
    may_be_double: BTreeSet<String>,
}

impl Rules {
    fn read(paths: &Paths) -> Result<Rules> {
        let file = paths.repository.join("agent/deny.toml");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Rules::parse(&text))
    }

    fn parse(text: &str) -> Rules {
        let crates = |key: &str| strings(text, key, "crate = ");
        Rules {
            licences: strings(text, "allow", ""),
            denied: crates("deny"),
            may_be_double: crates("skip"),
        }
    }

    fn complaints(&self, package: &Value) -> Vec<String> {
        let name = package["name"].as_str().unwrap_or_default();
        let mut wrong = Vec::new();
        if self.denied.contains(name) {
            wrong.push(format!("{name} is banned by agent/deny.toml"));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|s| {
            !s.starts_with("registry+https://github.com/rust-lang/crates.io-index")
        }) {
            wrong.push(format!("{name} comes from {}", source.unwrap_or_default()));
        }
        match package["license"].as_str() {
            Some(licence) if !self.permits(licence) => {
                wrong.push(format!("{name} has the licence {licence}"));
            }
            // Only a text: cargo-deny reads those, we see that it is there.
            None if !brings_licence(package) => wrong.push(format!("{name} has no licence")),
            _ => {}
        }
        wrong
    }

    /// An SPDX expression of OR and AND, which no dependency nests deeper than one pair of parentheses.
    fn permits(&self, expression: &str) -> bool {
        let plain = expression.replace('/', " OR ").replace(['(', ')'], "");
        let single = |licence: &str| {
            let licence = licence.trim().trim_end_matches('+').trim();
            self.licences.contains(licence)
        };
        plain
            .split(" AND ")
            .all(|part| part.split(" OR ").any(single))
    }

    fn duplicates(&self, tree: &str) -> Vec<String> {
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for line in tree.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(version)) = (words.next(), words.next())
                && version.starts_with('v')
            {
                versions.entry(name).or_default().insert(version);
            }
        }
        versions
            .into_iter()
            .filter(|(name, versions)| versions.len() > 1 && !self.may_be_double.contains(*name))
            .map(|(name, versions)| {
                let list: Vec<&str> = versions.into_iter().collect();
                format!("{name} is linked more than once: {}", list.join(", "))
            })
            .collect()
    }
}

fn brings_licence(package: &Value) -> bool {
    let folder = package["manifest_path"]
        .as_str()
        .and_then(|path| Path::new(path).parent());
    let files = folder.and_then(|folder| fs::read_dir(folder).ok());
    files.into_iter().flatten().flatten().any(|file| {
        let name = file.file_name().to_string_lossy().to_uppercase();
        name.starts_with("LICENSE") || name.starts_with("LICENCE")
    })
}

/// The strings of the list `key = [ … ]`, each after `before`; comments are skipped.
fn strings(text: &str, key: &str, before: &str) -> BTreeSet<String> {
    let begin = format!("{key} = [");
    text.lines()
        .skip_while(|line| !line.starts_with(&begin))
        .skip(1)
        .take_while(|line| !line.starts_with(']'))
        .filter_map(|line| {
            let line = line.split('#').next()?;
            let rest = line.get(line.find(&format!("{before}\""))? + before.len() + 1..)?;
            Some(rest.split('"').next()?.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "allow = [\n    \"MIT\", # note\n    \"Apache-2.0 WITH LLVM-exception\",\n    \"Unicode-3.0\",\n]\n\
                         deny = [\n    { crate = \"openssl-sys\", reason = \"no\" },\n]\n\
                         skip = [\n    { crate = \"nix\", reason = \"two\" },\n]\n";

    #[test]
    fn licences_are_judged_by_their_expression() {
        let rules = Rules::parse(RULES);
        assert!(rules.permits("MIT OR GPL-3.0"));
        assert!(rules.permits("BSD-3-Clause/MIT"));
        assert!(rules.permits("(MIT OR Zlib) AND Unicode-3.0"));
        assert!(rules.permits("Apache-2.0 WITH LLVM-exception"));
        assert!(!rules.permits("MIT AND GPL-3.0"));
        assert!(!rules.permits("Apache-2.0"));
    }

    #[test]
    fn only_listed_crates_may_be_double() {
        let rules = Rules::parse(RULES);
        let tree =
            "nix v0.29.0\nnix v0.31.0\n\nsyn v2.0.0\nsyn v2.0.0 (*)\nrand v0.8.0\nrand v0.9.0\n";
        assert_eq!(
            rules.duplicates(tree),
            ["rand is linked more than once: v0.8.0, v0.9.0"]
        );
    }

    #[test]
    fn banned_crates_and_foreign_sources_are_named() {
        let rules = Rules::parse(RULES);
        let package = serde_json::json!({ "name": "openssl-sys", "license": "MIT", "source": "git+https://x" });
        assert_eq!(rules.complaints(&package).len(), 2);
    }
}
