//! Device-mapper by its ioctls: make a device, give it a table, resume it.
//!
//! Layout: `linux/dm-ioctl.h`, interface version 4.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use crate::failure::{Doing as _, Result};

const CONTROL: &str = "/dev/mapper/control";
const BUFFER: usize = 4096;
const TARGET_SPEC: usize = 40;

/// `struct dm_ioctl` (312 bytes) and room behind it for one target.
#[repr(C)]
struct Request {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    rest: [u8; 7],
    payload: [u8; BUFFER],
}

const HEADER: u32 = 312;
const READONLY: u32 = 1;

#[derive(Clone, Copy)]
enum Command {
    Create = 3,
    Resume = 6,
    Load = 9,
}

/// A device that was made; its node is `/dev/dm-<minor>`.
pub(crate) struct Device {
    control: File,
    name: &'static str,
    minor: u64,
}

impl Device {
    /// Makes an empty device of that name.
    pub(crate) fn create(name: &'static str) -> Result<Self> {
        let control = File::options()
            .read(true)
            .write(true)
            .open(CONTROL)
            .doing(|| format!("open {CONTROL}"))?;
        let mut device = Self {
            control,
            name,
            minor: 0,
        };
        let answer = device
            .call(Command::Create, 0, None)
            .doing(|| format!("make the device-mapper device {name}"))?;
        // huge_encode_dev: the low byte and what is above bit 20 are the minor number.
        device.minor = (answer.dev & 0xff) | ((answer.dev >> 12) & 0xf_ff00);
        Ok(device)
    }

    /// Gives the device one read-only target over its whole size and makes it live; again later replaces it.
    pub(crate) fn load(&self, target: &str, sectors: u64, parameters: &str) -> Result<()> {
        self.call(Command::Load, READONLY, Some((target, sectors, parameters)))
            .doing(|| format!("load the {target} table of {}", self.name))?;
        self.call(Command::Resume, READONLY, None)
            .doing(|| format!("start the device {}", self.name))?;
        Ok(())
    }

    /// The device's node.
    pub(crate) fn path(&self) -> String {
        format!("/dev/dm-{}", self.minor)
    }

    fn call(
        &self,
        command: Command,
        flags: u32,
        target: Option<(&str, u64, &str)>,
    ) -> io::Result<Box<Request>> {
        let mut request = Box::new(Request {
            version: [4, 0, 0],
            data_size: HEADER + 4096,
            data_start: HEADER,
            target_count: 0,
            open_count: 0,
            flags,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; 128],
            uuid: [0; 129],
            rest: [0; 7],
            payload: [0; BUFFER],
        });
        request.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        if let Some((kind, sectors, parameters)) = target {
            if parameters.len() >= BUFFER - TARGET_SPEC || kind.len() >= 16 {
                return Err(io::Error::from_raw_os_error(libc::E2BIG));
            }
            // struct dm_target_spec: first sector, length, status, next, name; then the parameters with a zero.
            request.target_count = 1;
            request.payload[8..16].copy_from_slice(&sectors.to_ne_bytes());
            request.payload[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            request.payload[TARGET_SPEC..TARGET_SPEC + parameters.len()]
                .copy_from_slice(parameters.as_bytes());
        }
        // _IOWR(0xfd, command, struct dm_ioctl)
        let number = 0xc000_fd00 | (libc::c_ulong::from(HEADER) << 16) | command as libc::c_ulong;
        // SAFETY: the request is a live struct dm_ioctl whose data_size is the size of the buffer behind it; the kernel
        // reads and writes no further than that.
        let result = unsafe {
            libc::ioctl(
                self.control.as_raw_fd(),
                number,
                std::ptr::from_mut::<Request>(&mut request),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_kernels_size() {
        assert_eq!(std::mem::offset_of!(Request, payload), 312);
        assert_eq!(std::mem::offset_of!(Request, dev), 40);
        assert_eq!(std::mem::offset_of!(Request, uuid), 176);
    }
}
