//! What skepd remembers of its rules across a restart.
//!
//! One small file per namespace, on a file system that lasts as long as the kernel does: which
//! namespace it was, at which count of nftables transactions our table was written, and the digest of
//! its text. When the count is still the same, nobody has changed a rule since and nothing has to be
//! written again. A note that is lost or damaged only costs a rewrite.

use std::{fs, path::PathBuf};

use skep_core::network::{Ns, state::Table};

use crate::netns::Identity;

/// Our table as it was at a count of transactions.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) generation: u32,
    pub(super) table: Table,
}

/// The notes of a node.
#[derive(Debug)]
pub(super) struct Notes {
    directory: PathBuf,
}

impl Notes {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// What was noted of this very namespace.
    pub(super) fn read(&self, ns: &Ns, identity: Option<Identity>) -> Option<Written> {
        let text = fs::read_to_string(self.path(ns)).ok()?;
        parse(&text, identity)
    }

    /// Notes what was written, or that nothing is known any more.
    pub(super) fn write(
        &self,
        ns: &Ns,
        identity: Option<Identity>,
        written: Option<(u32, [u8; 32])>,
    ) {
        let Some((generation, digest)) = written else {
            self.remove(ns);
            return;
        };
        let text = format(identity, generation, &digest);
        let path = self.path(ns);
        let noted = fs::create_dir_all(&self.directory).and_then(|()| fs::write(&path, text));
        if let Err(error) = noted {
            tracing::debug!(%error, path = %path.display(), "rules are not noted for a restart");
            self.remove(ns);
        }
    }

    /// Forgets a namespace.
    pub(super) fn remove(&self, ns: &Ns) {
        // One that is not there, or cannot be removed, is found out by its count.
        let _ = fs::remove_file(self.path(ns));
    }

    fn path(&self, ns: &Ns) -> PathBuf {
        self.directory.join(ns.to_string())
    }
}

fn format(identity: Option<Identity>, generation: u32, digest: &[u8; 32]) -> String {
    let (device, inode) = identity.unwrap_or_default();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{device} {inode} {generation} {digest}\n")
}

fn parse(text: &str, identity: Option<Identity>) -> Option<Written> {
    let mut words = text.strip_suffix('\n')?.split(' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let noted = (number()?, number()?);
    let generation = u32::try_from(number()?).ok()?;
    let hex = words.next()?;
    if noted != identity.unwrap_or_default() || hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Written {
        generation,
        table: Table::Digest(digest),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_note_reads_as_it_was_written(identity: Option<(u64, u64)>, generation: u32, digest: [u8; 32]) {
            let text = format(identity, generation, &digest);
            let read = parse(&text, identity).unwrap();
            prop_assert_eq!(read.generation, generation);
            prop_assert_eq!(read.table, Table::Digest(digest));
            prop_assert!(parse(&text, Some((7, 7))).is_none() || identity == Some((7, 7)));
            prop_assert!(parse(&text[..text.len() - 1], identity).is_none(), "cut short");
        }

        #[test]
        fn any_text_is_survived(text in ".{0,120}") {
            let _ = parse(&text, None);
        }
    }
}
