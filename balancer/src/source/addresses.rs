//! Which of a replica's addresses can be reached: the one in a subnet that this container is attached to as well.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// A directly attached subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(net) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(net) & mask == u128::from(address) & mask
            }
            _ => false,
        }
    }
}

/// The subnets of this container, from the kernel's routing tables under `proc` (`/proc`). Empty where unreadable.
pub fn subnets(proc: &Path) -> Vec<Subnet> {
    let read = |name: &str| std::fs::read_to_string(proc.join("net").join(name)).unwrap_or_default();
    let mut all: Vec<Subnet> = read("route").lines().filter_map(ipv4).collect();
    all.extend(read("ipv6_route").lines().filter_map(ipv6));
    all
}

/// The first of `addresses` in one of `subnets`; just the first one where subnets are unknown.
pub fn reachable(addresses: &[IpAddr], subnets: &[Subnet]) -> Option<IpAddr> {
    let shared = addresses.iter().find(|address| subnets.iter().any(|subnet| subnet.contains(**address)));
    shared.or_else(|| addresses.first()).copied()
}

/// A line of `/proc/net/route`: hexadecimal in the machine's byte order. Routes with a gateway are not ours.
fn ipv4(line: &str) -> Option<Subnet> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let (destination, gateway, mask) = (number(1)?, number(2)?, number(7)?);
    if gateway != 0 || mask == 0 {
        return None;
    }
    let address = IpAddr::V4(Ipv4Addr::from(destination.to_ne_bytes()));
    u8::try_from(mask.count_ones()).ok().map(|prefix| Subnet { address, prefix })
}

/// A line of `/proc/net/ipv6_route`: destination, prefix, source, prefix, next hop, …, all hexadecimal.
fn ipv6(line: &str) -> Option<Subnet> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let destination = u128::from_str_radix(fields.first()?, 16).ok()?;
    let prefix = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    let next_hop = u128::from_str_radix(fields.get(4)?, 16).ok()?;
    let attached = next_hop == 0 && prefix > 0 && prefix < 128;
    attached.then_some(Subnet { address: IpAddr::V6(Ipv6Addr::from(destination)), prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth2\t00000000\t010012AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t0001000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
        eth2\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
    const ROUTE6: &str = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
        00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_address_on_the_shared_network_is_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("net")).expect("made");
        std::fs::write(dir.path().join("net/route"), ROUTE).expect("written");
        std::fs::write(dir.path().join("net/ipv6_route"), ROUTE6).expect("written");
        let subnets = subnets(dir.path());
        assert_eq!(subnets.len(), 3, "{subnets:?}");
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let pick = |texts: &[&str]| reachable(&addresses(texts), &subnets).map(|it| it.to_string());
        assert_eq!(pick(&["10.0.0.9", "10.0.1.9"]).as_deref(), Some("10.0.1.9"));
        assert_eq!(pick(&["10.0.0.9", "fd00::9"]).as_deref(), Some("fd00::9"));
        assert_eq!(pick(&["10.0.0.9", "10.0.2.9"]).as_deref(), Some("10.0.0.9"), "none shared: the first");
        assert_eq!(pick(&[]), None);
    }
}
