//! What may be executed on a node, against the list of what should be.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Image;
use crate::archive::sorted_tree;

const LIST: &str = "image/allowed-executables";
const SETUID_SETGID: u32 = 0o6000;

/// Compares every executable file, every script and every setuid or setgid bit of the built root with
/// `image/allowed-executables`. Run by `lab test`.
///
/// # Errors
/// Names each file that is not on the list, each line of the list without a file, and each set bit.
pub fn check_executables(repository: &Path, image: &Image) -> Result<()> {
    let list =
        fs::read_to_string(repository.join(LIST)).with_context(|| format!("cannot read {LIST}"))?;
    let complaints = compare(&found(&image.root)?, &list);
    if complaints.is_empty() {
        return Ok(());
    }
    bail!(
        "the image and {LIST} differ:\n  {}",
        complaints.join("\n  ")
    )
}

/// One file that can be executed.
#[derive(Debug, PartialEq, Eq)]
struct Executable {
    path: String,
    special: bool,
    script: bool,
}

fn found(tree: &Path) -> Result<Vec<Executable>> {
    let mut found = Vec::new();
    for path in sorted_tree(tree)? {
        let data = fs::symlink_metadata(&path)?;
        let special = data.mode() & SETUID_SETGID != 0 && !data.is_symlink();
        let runs = data.is_file() && data.permissions().mode() & 0o111 != 0;
        if !(runs || special && data.is_file()) {
            continue;
        }
        let mut first = [0; 2];
        let script = fs::File::open(&path)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut first))
            .is_ok_and(|()| &first == b"#!");
        let name = path.strip_prefix(tree)?.display();
        found.push(Executable {
            path: format!("/{name}"),
            special,
            script,
        });
    }
    Ok(found)
}

/// What is wrong, a line each. The list has a path per line; `#` begins a comment, a `*` stands for the end of a name.
fn compare(found: &[Executable], list: &str) -> Vec<String> {
    let allowed: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split('#').next())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let matches = |allowed: &str, path: &str| match allowed.strip_suffix('*') {
        Some(begin) => path
            .strip_prefix(begin)
            .is_some_and(|rest| !rest.contains('/')),
        None => allowed == path,
    };
    let mut complaints = BTreeSet::new();
    for file in found {
        if file.special {
            complaints.insert(format!("{}: setuid or setgid", file.path));
        }
        if file.script {
            complaints.insert(format!(
                "{}: a script, and there is no interpreter",
                file.path
            ));
        }
        if !allowed.iter().any(|line| matches(line, &file.path)) {
            complaints.insert(format!("{}: executable, not on the list", file.path));
        }
    }
    for line in &allowed {
        if !found.iter().any(|file| matches(line, &file.path)) {
            complaints.insert(format!("{line}: on the list, not in the image"));
        }
    }
    complaints.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, special: bool, script: bool) -> Executable {
        Executable {
            path: path.to_owned(),
            special,
            script,
        }
    }

    #[test]
    fn every_difference_is_a_complaint() {
        let list = "# comment\n/usr/bin/skepd\n/usr/lib/libc* # libraries\n/usr/bin/gone\n";
        let found = [
            file("/usr/bin/skepd", false, false),
            file("/usr/lib/libc.so.6", false, false),
            file("/usr/lib/libc/deep", false, false),
            file("/usr/bin/su", true, false),
            file("/usr/bin/ldd", false, true),
        ];
        assert_eq!(
            compare(&found, list),
            [
                "/usr/bin/gone: on the list, not in the image",
                "/usr/bin/ldd: a script, and there is no interpreter",
                "/usr/bin/ldd: executable, not on the list",
                "/usr/bin/su: executable, not on the list",
                "/usr/bin/su: setuid or setgid",
                "/usr/lib/libc/deep: executable, not on the list",
            ]
        );
        assert!(compare(&found[..2], "/usr/bin/skepd\n/usr/lib/libc*").is_empty());
    }
}
