//! Addresses of a node's interfaces through ioctls: one `ip` call costs a tenth of a second in an emulated VM.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use crate::sys::{Result, context};

/// Brings the loopback interface up.
pub fn loopback() -> Result<()> {
    set_up("lo")
}

/// Gives `interface` its address (with prefix length) and brings it up; then routes everything to `gateway`.
/// Swarm's agents want a default route to exist although nothing lies behind it.
pub fn configure(interface: &str, address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> Result<()> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    address_ioctl(interface, libc::SIOCSIFADDR, address, "address")?;
    address_ioctl(interface, libc::SIOCSIFNETMASK, Ipv4Addr::from(mask), "netmask")?;
    set_up(interface)?;
    default_route(gateway)
}

/// Lets containers' packets pass between interfaces.
pub fn enable_forwarding() -> Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    context(std::fs::write(path, "1"), || format!("cannot write {path}"))
}

fn control_socket() -> Result<UdpSocket> {
    context(UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0")), || {
        "cannot open a socket for interface settings".to_owned()
    })
}

fn request(interface: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain old data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr is plain old data for which all zeroes is valid.
    let mut plain: libc::sockaddr = unsafe { std::mem::zeroed() };
    plain.sa_family = 2; // AF_INET
    // sockaddr_in: two bytes of port, then the four of the address.
    for (slot, byte) in plain.sa_data[2..6].iter_mut().zip(address.octets()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    plain
}

fn address_ioctl(interface: &str, code: libc::c_ulong, address: Ipv4Addr, what: &str) -> Result<()> {
    let socket = control_socket()?;
    let mut request = request(interface);
    request.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: the request is a valid ifreq and the descriptor is open.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), code, &raw mut request) };
    if status < 0 {
        return Err(format!("cannot set {what} {address} on {interface}: {}", io::Error::last_os_error()));
    }
    Ok(())
}

fn set_up(interface: &str) -> Result<()> {
    let socket = control_socket()?;
    let mut request = request(interface);
    // IFF_UP | IFF_RUNNING
    request.ifr_ifru.ifru_flags = 0x41;
    // SAFETY: the request is a valid ifreq and the descriptor is open.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if status < 0 {
        return Err(format!("cannot bring {interface} up: {}", io::Error::last_os_error()));
    }
    Ok(())
}

fn default_route(gateway: Ipv4Addr) -> Result<()> {
    let socket = control_socket()?;
    // SAFETY: rtentry is plain old data for which all zeroes is valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = 3; // RTF_UP | RTF_GATEWAY
    // SAFETY: the route is a valid rtentry and the descriptor is open.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw mut route) };
    let error = io::Error::last_os_error();
    if status < 0 && error.raw_os_error() != Some(libc::EEXIST) {
        return Err(format!("cannot route to {gateway}: {error}"));
    }
    Ok(())
}

/// The interface's directory exists, which is to say that the driver has found it.
pub fn exists(interface: &str) -> bool {
    File::open(format!("/sys/class/net/{interface}")).is_ok()
}
