//! Layers, good and hostile, on a real file system. As root, as a node is: ownership, devices and attributes need it.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

struct Layer {
    dir: PathBuf,
}

impl Layer {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("skep-unpack-{}-{number}", std::process::id()));
        std::fs::create_dir_all(dir.join("fs")).unwrap();
        std::fs::write(dir.join("outside"), "untouched").unwrap();
        Self { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join("fs").join(path)
    }

    fn unpack(&self, archive: Vec<u8>) -> Result<u64> {
        self.unpack_within(
            archive,
            Budget {
                keep_free: 0,
                ..Budget::default()
            },
        )
    }

    fn unpack_within(&self, archive: Vec<u8>, budget: Budget) -> Result<u64> {
        let result = unpack(&archive[..], &self.dir.join("fs"), budget);
        assert_eq!(
            std::fs::read_to_string(self.dir.join("outside")).unwrap(),
            "untouched"
        );
        let beside: Vec<_> = std::fs::read_dir(&self.dir).unwrap().collect();
        assert_eq!(beside.len(), 2, "something was made outside the layer");
        result
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// An entry exactly as given, whatever it says.
fn raw(builder: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_size(data.len() as u64);
    header.set_mode(0o755);
    header.set_mtime(1_000_000_000);
    header.set_device_major(7).unwrap();
    header.set_device_minor(7).unwrap();
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, link) in entries {
        let data: &[u8] = if *kind == EntryType::Regular {
            b"data"
        } else {
            b""
        };
        raw(&mut builder, *kind, path, link, data);
    }
    builder.into_inner().unwrap()
}

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const LINK: EntryType = EntryType::Link;

#[test]
fn a_layer_is_unpacked_whole() {
    let layer = Layer::new();
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o4750);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(77);
    // cap_net_bind_service=ep, as the kernel stores it.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", &capability[..]),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .unwrap();
    builder
        .append_data(&mut header, "usr/bin/tool", &b"abc"[..])
        .unwrap();
    raw(&mut builder, LINK, "usr/bin/other", "/usr/bin/tool", b"");
    raw(&mut builder, SYMLINK, "bin", "usr/bin", b"");
    raw(&mut builder, FILE, "bin/through", "", b"x");
    raw(&mut builder, DIR, "usr", "", b"");
    raw(&mut builder, EntryType::Fifo, "pipe", "", b"");
    raw(&mut builder, EntryType::Block, "disk", "", b"");
    assert_eq!(layer.unpack(builder.into_inner().unwrap()).unwrap(), 4);

    let tool = layer.path("usr/bin/tool").metadata().unwrap();
    assert_eq!(
        (tool.mode() & 0o7777, tool.uid(), tool.gid(), tool.mtime()),
        (0o4750, 12, 34, 77)
    );
    assert_eq!(tool.nlink(), 2);
    let mut value = [0; 64];
    let length = fs::getxattr(
        layer.path("usr/bin/tool"),
        "security.capability",
        &mut value,
    )
    .unwrap();
    assert_eq!(&value[..length], capability);
    assert!(
        fs::getxattr(
            layer.path("usr/bin/tool"),
            "trusted.overlay.opaque",
            &mut value
        )
        .is_err()
    );
    assert!(layer.path("usr/bin/through").exists());
    assert_eq!(layer.path("usr").metadata().unwrap().mtime(), 1_000_000_000);
    assert!(layer.path("pipe").metadata().unwrap().file_type().is_fifo());
    assert!(
        layer
            .path("disk")
            .metadata()
            .unwrap()
            .file_type()
            .is_block_device()
    );
    assert_eq!(
        layer.path("disk").metadata().unwrap().permissions().mode() & 0o777,
        0o755
    );
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|there| there.file_type().is_char_device() && there.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    fs::getxattr(path, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|length| &value[..length] == b"y")
}

#[test]
fn whiteouts_take_overlayfs_form() {
    let layer = Layer::new();
    let entries = [
        (FILE, "a/.wh.gone", ""),
        (FILE, "b/.wh..wh..opq", ""),
        (FILE, ".wh..wh.plnk", ""),
        (FILE, "mine", ""),
        (FILE, ".wh.mine", ""),
        (FILE, ".wh.again", ""),
        (DIR, "again", ""),
        (FILE, ".wh.file", ""),
        (FILE, "file", ""),
    ];
    layer.unpack(archive(&entries)).unwrap();
    assert!(is_whiteout(&layer.path("a/gone")));
    assert!(is_opaque(&layer.path("b")) && !is_opaque(&layer.path("a")));
    assert!(!layer.path(".wh..wh.plnk").exists());
    assert!(layer.path("mine").is_file());
    assert!(layer.path("again").is_dir() && is_opaque(&layer.path("again")));
    assert!(layer.path("file").is_file());
}

#[test]
fn later_entries_win() {
    let layer = Layer::new();
    let entries = [
        (DIR, "d", ""),
        (FILE, "d/inside", ""),
        (FILE, "d", ""),
        (SYMLINK, "s", "/"),
        (DIR, "s", ""),
        (FILE, "s/x", ""),
        (FILE, "f", ""),
        (FILE, "f", ""),
    ];
    layer.unpack(archive(&entries)).unwrap();
    assert!(layer.path("d").is_file());
    assert!(layer.path("s").symlink_metadata().unwrap().is_dir() && layer.path("s/x").is_file());
}

#[test]
fn links_lead_nowhere_but_inside() {
    let layer = Layer::new();
    let entries = [
        (SYMLINK, "up", "../../../../../.."),
        (FILE, "up/outside", ""),
        (SYMLINK, "abs", "/"),
        (FILE, "abs/etc/passwd", ""),
        (SYMLINK, "proc", "/proc/self/root"),
        (SYMLINK, "outside2", "../outside"),
        (FILE, "outside2", ""),
    ];
    layer.unpack(archive(&entries)).unwrap();
    assert!(
        layer.path("outside").is_file(),
        "the link ends at the layer's root"
    );
    assert!(layer.path("etc/passwd").is_file());
    assert!(layer.path("outside2").symlink_metadata().unwrap().is_file());
}

#[test]
fn tricks_are_refused() {
    type Entries<'a> = &'a [(EntryType, &'a str, &'a str)];
    let cases: [(&str, Entries); 9] = [
        ("climbs", &[(FILE, "../outside", "")]),
        ("climbs back", &[(FILE, "a/../../outside", "")]),
        ("hard link out", &[(LINK, "x", "../outside")]),
        (
            "hard link through a link",
            &[(SYMLINK, "l", ".."), (LINK, "x", "l/outside")],
        ),
        ("hard link to nothing", &[(LINK, "x", "etc/shadow")]),
        (
            "hard link to a directory",
            &[(DIR, "d", ""), (LINK, "x", "d")],
        ),
        ("whiteout that climbs", &[(FILE, ".wh...", "")]),
        ("parent is a file", &[(FILE, "f", ""), (FILE, "f/x", "")]),
        ("link loop", &[(SYMLINK, "l", "l"), (FILE, "l/x", "")]),
    ];
    for (what, entries) in cases {
        let layer = Layer::new();
        assert!(layer.unpack(archive(entries)).is_err(), "{what}");
    }
    // A device that overlayfs would take for a whiteout.
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Char);
    header.set_path("x").unwrap();
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    assert!(Layer::new().unpack(builder.into_inner().unwrap()).is_err());
}

#[test]
fn a_layer_cannot_fill_the_disk() {
    let entries = [(FILE, "a", ""), (FILE, "b", "")];
    let budget = Budget {
        keep_free: 0,
        ..Budget::default()
    };
    let small = Budget { bytes: 7, ..budget };
    let error = Layer::new()
        .unpack_within(archive(&entries), small)
        .unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge(_)), "{error}");
    let few = Budget {
        entries: 1,
        ..budget
    };
    let error = Layer::new()
        .unpack_within(archive(&entries), few)
        .unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge(_)), "{error}");
    let reserve = Budget {
        keep_free: u64::MAX,
        ..budget
    };
    let error = Layer::new()
        .unpack_within(archive(&entries), reserve)
        .unwrap_err();
    assert!(matches!(error, UnpackError::NoSpace), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any sequence of entries over a few names, with links in every direction: nothing is ever made outside.
    #[test]
    fn no_sequence_of_entries_escapes(entries in proptest::collection::vec(
        (
            prop::sample::select(vec![FILE, DIR, SYMLINK, LINK]),
            prop::sample::select(vec!["a", "b", "a/b", "b/a", "a/b/c", "a/../b", "../outside", "a/outside", "./a", "/b", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", "b/.wh.."]),
            prop::sample::select(vec!["..", "../..", "/", "a", "b", "../outside", "/outside", "a/b", ".", "../fs/../outside"]),
        ), 1..14)) {
        let layer = Layer::new();
        let _ = layer.unpack(archive(&entries));
    }
}
