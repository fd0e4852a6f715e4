//! A node cut off from others, or losing packets: a table of packet filters that belongs to a socket of this process. The
//! kernel removes it when the socket is closed, however that comes about.
//!
//! Filters of the node's own network namespace, before and after routing, and not programs at the sockets' cgroup: traffic
//! between containers of different nodes is made by the kernel (VXLAN) and belongs to no socket.

use std::net::IpAddr;

use super::{
    DrillError,
    nft::{Batch, Family, Hook, Owned},
};

/// Name of the table.
const TABLE: &str = "swarmguard-drill";

/// Begins to drop packets from and to these addresses.
pub(super) fn begin(peers: &[IpAddr], percent: u8) -> Result<Owned, DrillError> {
    let mut batch = Batch::default();
    for family in [Family::V4, Family::V6] {
        let here: Vec<&IpAddr> =
            peers.iter().filter(|peer| peer.is_ipv6() == (family == Family::V6)).collect();
        if here.is_empty() {
            continue;
        }
        batch.table(family, TABLE);
        for hook in [Hook::In, Hook::Forward, Hook::Out] {
            batch.chain(family, TABLE, hook);
            for peer in &here {
                for source in [true, false] {
                    batch.drop_rule(family, TABLE, hook, **peer, source, percent);
                }
            }
        }
    }
    batch.commit().map_err(DrillError::system("filter packets (it needs NET_ADMIN, and Linux 5.12 or later)"))
}
