//! One layer on its way from the registry to its directory: hashed as it comes, unpacked as it is read, and only given its
//! place when both digests are right.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use skep_core::worker::container::image::Digest;
use tokio::sync::mpsc;

use super::unpack::{Budget, UnpackError, unpack};
use crate::rooted::remove_tree;

/// Largest window of a zstd stream, as a power of two: what any level but `--ultra` uses, with room. Each layer that is
/// being unpacked may take so much memory.
const MAX_WINDOW: u32 = 25;

/// Bytes on the way from the network to the unpacking thread, in chunks as they come.
pub(super) const BACKLOG: usize = 16;

/// Why a layer has no place here.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayerError {
    /// It could not be unpacked.
    #[error("layer {0}: {1}")]
    Unpack(Digest, UnpackError),
    /// Its compressed bytes are not those of the manifest.
    #[error("digest mismatch: wanted layer {wanted}, got {got}")]
    Compressed {
        /// By the manifest.
        wanted: Digest,
        /// What came.
        got: Digest,
    },
    /// Its unpacked bytes are not those of the configuration.
    #[error("digest mismatch: wanted unpacked layer {wanted}, got {got}")]
    Unpacked {
        /// By the configuration.
        wanted: Digest,
        /// What came.
        got: Digest,
    },
    /// It has more bytes than the manifest says.
    #[error("layer {0} is longer than its manifest says")]
    TooLong(Digest),
    /// The disk failed.
    #[error("layer {0}: {1}")]
    Disk(Digest, io::Error),
}

/// What a layer must be.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// Digest of the compressed bytes.
    pub(super) digest: Digest,
    /// Number of the compressed bytes.
    pub(super) size: u64,
    /// Digest of the tar archive.
    pub(super) diff_id: Digest,
}

/// Unpacks what comes through `input` into `dir`, which is made. Ends with an error, and `dir` in any state, unless all of
/// it was right. Gives the number of bytes unpacked.
pub(super) fn receive(
    input: mpsc::Receiver<Bytes>,
    dir: &Path,
    expected: &Expected,
) -> Result<u64, LayerError> {
    let disk = |error| LayerError::Disk(expected.digest.clone(), error);
    std::fs::create_dir_all(dir).map_err(disk)?;
    let mut compressed = Hashing::new(Chunks::new(input, expected.size));
    let unpacked = {
        let plain = decompress(&mut compressed).map_err(disk)?;
        let mut archive = Hashing::new(plain);
        let bytes = unpack(&mut archive, dir, Budget::default());
        bytes.map(|bytes| (bytes, archive.digest()))
    };
    // Bytes after the end of the compression belong to the blob as well; and an archive that cannot be read because the
    // wrong bytes came is better called so.
    let drained = io::copy(&mut compressed, &mut io::sink());
    if compressed.inner.too_long {
        return Err(LayerError::TooLong(expected.digest.clone()));
    }
    let complete = compressed.inner.left == 0;
    let got = compressed.digest();
    if (unpacked.is_ok() || complete) && got != expected.digest {
        let wanted = expected.digest.clone();
        return Err(LayerError::Compressed { wanted, got });
    }
    let (bytes, diff_id) =
        unpacked.map_err(|error| LayerError::Unpack(expected.digest.clone(), error))?;
    drained.map_err(disk)?;
    if diff_id != expected.diff_id {
        let wanted = expected.diff_id.clone();
        return Err(LayerError::Unpacked {
            wanted,
            got: diff_id,
        });
    }
    Ok(bytes)
}

/// Bytes from the channel, at most as many as were promised.
struct Chunks {
    input: mpsc::Receiver<Bytes>,
    current: Bytes,
    left: u64,
    too_long: bool,
}

impl Chunks {
    fn new(input: mpsc::Receiver<Bytes>, size: u64) -> Self {
        Self {
            input,
            current: Bytes::new(),
            left: size,
            too_long: false,
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.input.blocking_recv() {
                Some(bytes) => self.current = bytes,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        let length = u64::try_from(count).unwrap_or(u64::MAX);
        if length > self.left {
            self.too_long = true;
            return Err(io::Error::other("longer than promised"));
        }
        self.left -= length;
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    fn digest(&self) -> Digest {
        Digest::from_bytes(self.hash.clone().finalize().into())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// Tells the compression by its first bytes, as Docker does: media types are often wrong.
fn decompress<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    input.by_ref().take(4).read_to_end(&mut start)?;
    let kind = start.clone();
    let whole = Read::chain(io::Cursor::new(start), input);
    if kind.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::read::MultiGzDecoder::new(whole)))
    } else if kind.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::Decoder::new(whole)?;
        decoder.window_log_max(MAX_WINDOW)?;
        Ok(Box::new(decoder))
    } else {
        Ok(Box::new(whole))
    }
}

/// Makes all of it durable before it gets its place: one call for the file system, not one per file.
pub(super) fn settle(dir: &Path) -> io::Result<()> {
    let opened = std::fs::File::open(dir)?;
    Ok(rustix::fs::syncfs(&opened)?)
}

/// A directory that is removed unless it was renamed away.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// For a directory that may be made at `path`.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the store is opened next.
        let _ = remove_tree(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, "file", &b"hello"[..])
            .unwrap();
        builder.into_inner().unwrap()
    }

    fn digest(bytes: &[u8]) -> Digest {
        Digest::from_bytes(Sha256::digest(bytes).into())
    }

    fn take(sent: &[u8], expected: &Expected) -> Result<u64, LayerError> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("skep-layer-{}-{number}", std::process::id()));
        let scratch = Scratch::new(dir);
        let (sender, input) = mpsc::channel(1000);
        for chunk in sent.chunks(100) {
            sender.try_send(Bytes::copy_from_slice(chunk)).unwrap();
        }
        drop(sender);
        receive(input, scratch.path(), expected)
    }

    fn expected(blob: &[u8], archive: &[u8]) -> Expected {
        Expected {
            digest: digest(blob),
            size: u64::try_from(blob.len()).unwrap(),
            diff_id: digest(archive),
        }
    }

    #[test]
    fn every_compression_is_read() {
        let archive = archive();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&archive).unwrap();
        let blobs = [
            archive.clone(),
            gzip.finish().unwrap(),
            zstd::encode_all(&archive[..], 1).unwrap(),
        ];
        for blob in blobs {
            assert_eq!(take(&blob, &expected(&blob, &archive)).unwrap(), 5);
        }
    }

    #[test]
    fn wrong_bytes_are_noticed() {
        let archive = archive();
        let good = expected(&archive, &archive);
        let mut other = archive.clone();
        *other.last_mut().unwrap() ^= 1;
        assert!(matches!(
            take(&other, &good),
            Err(LayerError::Compressed { .. })
        ));
        let wrong = Expected {
            diff_id: digest(b"x"),
            ..good.clone()
        };
        assert!(matches!(
            take(&archive, &wrong),
            Err(LayerError::Unpacked { .. })
        ));
        let short = Expected {
            size: good.size - 1,
            ..good.clone()
        };
        assert!(matches!(
            take(&archive, &short),
            Err(LayerError::TooLong(_))
        ));
        assert!(take(&archive[..700], &good).is_err());
        assert!(matches!(
            take(b"nonsense", &Expected { size: 8, ..good }),
            Err(LayerError::Compressed { .. })
        ));
    }
}
