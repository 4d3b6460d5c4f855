//! TUN devices: packets of a network device, read and written by a program.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// What the kernel puts before each packet (`struct virtio_net_hdr`): whether it is many packets in
/// one, and which checksum is still to be computed.
pub const HEADER_BYTES: usize = 10;

/// The longest packet, header included, that a device with offloads gives.
pub const SUPER_PACKET_BYTES_MAX: usize = HEADER_BYTES + 65_536;

/// Makes a TUN device in the network namespace of the calling thread. It lives as long as the file.
/// A read gives one packet, a write takes one, each with its header; reads do not wait.
///
/// With `super_packets` the kernel hands over what it would split (TCP and UDP segments of up to 64 KiB)
/// whole. In any case it leaves checksums to the receiving kernel, which trusts the header.
///
/// # Errors
/// As the kernel says: `EPERM` without `CAP_NET_ADMIN`, `ENOENT` without /dev/net/tun, `EINVAL` where
/// the kernel (before 6.2) does not know one of the offloads.
pub fn open_tun(name: &str, super_packets: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options.open("/dev/net/tun")?;

    // SAFETY: zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::other(format!("{name}: too long for a device")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the file is open, and TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;

    let mut offloads = libc::TUN_F_CSUM;
    if super_packets {
        offloads |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    let offloads = libc::c_ulong::from(offloads);
    // SAFETY: the file is open, and TUNSETOFFLOAD takes a number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })?;
    Ok(file)
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
