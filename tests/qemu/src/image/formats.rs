//! The few fields of binary formats that are read from what mkosi made.

/// The content of a section of a PE file, as UKIs keep their parts (Microsoft's PE format, COFF section table).
pub(super) fn pe_section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let header = at_u32(file, 0x3c)?;
    if file.get(header..header.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let sections = usize::from(at_u16(file, header + 6)?);
    let table = header + 24 + usize::from(at_u16(file, header + 20)?);
    (0..sections).find_map(|index| {
        let entry = file.get(table + index * 40..table + index * 40 + 40)?;
        if entry[..8].split(|b| *b == 0).next()? != name.as_bytes() {
            return None;
        }
        let (size, offset) = (at_u32(entry, 8)?, at_u32(entry, 20)?);
        file.get(offset..offset.checked_add(size)?)
    })
}

/// The size of an erofs file system in bytes, from its first 4 KiB (the superblock at 1024).
pub(super) fn erofs_size(head: &[u8]) -> Option<u64> {
    if at_u32(head, 1024)? != 0xe0f5_e1e2 {
        return None;
    }
    let shift = u32::from(*head.get(1024 + 12)?);
    let blocks = u64::try_from(at_u32(head, 1024 + 36)?).ok()?;
    blocks.checked_shl(shift)
}

/// The size of dm-verity's superblock and hash tree in bytes, from the superblock: blocks of 4 KiB, 128 hashes in each.
pub(super) fn verity_size(head: &[u8]) -> Option<u64> {
    if head.get(..8)? != b"verity\0\0" {
        return None;
    }
    let mut level = u64::from_le_bytes(head.get(72..80)?.try_into().ok()?);
    let mut blocks = 1;
    while level > 1 {
        level = level.div_ceil(128);
        blocks += level;
    }
    Some(blocks * 4096)
}

fn at_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn at_u32(bytes: &[u8], at: usize) -> Option<usize> {
    let value = u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?);
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_found_by_its_name() {
        let mut file = vec![0; 0x200];
        file[0x3c] = 0x40;
        file[0x40..0x44].copy_from_slice(b"PE\0\0");
        file[0x46] = 2;
        file[0x54] = 8;
        let table = 0x40 + 24 + 8;
        file[table..table + 5].copy_from_slice(b".text");
        file[table + 40..table + 48].copy_from_slice(b".cmdline");
        file[table + 48] = 5;
        file[table + 61] = 1;
        file[0x100..0x105].copy_from_slice(b"quiet");
        assert_eq!(pe_section(&file, ".cmdline"), Some(&b"quiet"[..]));
        assert_eq!(pe_section(&file, ".linux"), None);
        assert_eq!(pe_section(&file[..0x102], ".cmdline"), None);
        assert_eq!(pe_section(b"MZ", ".cmdline"), None);
    }

    #[test]
    fn sizes_are_those_of_what_is_used() {
        let mut head = vec![0; 4096];
        assert_eq!(erofs_size(&head), None);
        head[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        head[1024 + 12] = 12;
        head[1024 + 36] = 10;
        assert_eq!(erofs_size(&head), Some(40960));

        assert_eq!(verity_size(&head), None);
        head[..8].copy_from_slice(b"verity\0\0");
        head[72..80].copy_from_slice(&200_u64.to_le_bytes());
        assert_eq!(verity_size(&head), Some((1 + 2 + 1) * 4096));
    }
}
