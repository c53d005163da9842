//! VXLAN network identifiers.

use std::collections::BTreeSet;

/// The first identifier that Docker gives.
const FIRST: u32 = 4096;
/// The last one that 24 bits hold.
const LAST: u32 = (1 << 24) - 1;

/// The identifier behind the highest one in use, so that one that was freed rests; the lowest free one
/// once the end is reached. `None` when all are in use.
pub(super) fn next(used: &BTreeSet<u32>) -> Option<u32> {
    let behind = used.last().map_or(FIRST, |last| (last + 1).max(FIRST));
    if behind <= LAST {
        return Some(behind);
    }
    (FIRST..=LAST).find(|vni| !used.contains(vni))
}
