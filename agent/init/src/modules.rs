//! Kernel modules of the initrd: plain files that the build put into `/modules`, already unpacked, with lists in the
//! order of their dependencies.

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;

use crate::failure::{Doing as _, Failure, Result};

const FOLDER: &str = "/modules";

/// What the root itself needs, and the one disk driver of most virtual machines.
pub(crate) const FIRST: &str = "first";
/// Other disk drivers, loaded only when no root was found without them.
pub(crate) const OTHER_DISKS: &str = "other-disks";

/// Loads the modules of a list; one that is loaded already is none of a problem.
pub(crate) fn load(list: &str) -> Result<()> {
    let path = Path::new(FOLDER).join(list);
    let text = fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    for name in text.lines().filter(|line| !line.is_empty()) {
        let doing = || format!("load the module {name}");
        let file = File::open(Path::new(FOLDER).join(name)).doing(doing)?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            // The hardware that the driver asks for may not be there.
            Err(Errno::NODEV) if list == OTHER_DISKS => {}
            Err(why) => return Err(Failure::new(doing(), why)),
        }
    }
    Ok(())
}
