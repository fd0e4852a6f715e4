//! Whether a node satisfies a placement constraint, by the rules of Swarm's scheduler: `==` and `!=`, without regard to
//! case, an absent label being empty. What cannot be judged (an unknown key, an address that is none) counts as not satisfied, so
//! that no target is chosen that Swarm would refuse.

use std::net::IpAddr;

use crate::swarm::Node;

/// Whether a node satisfies all of these constraints; else the first that it does not.
pub fn satisfied<'a>(node: &Node, constraints: impl IntoIterator<Item = &'a str>) -> Result<(), &'a str> {
    constraints.into_iter().find(|constraint| !holds(node, constraint)).map_or(Ok(()), Err)
}

fn holds(node: &Node, constraint: &str) -> bool {
    let (key, wanted, equal) = match (constraint.find("=="), constraint.find("!=")) {
        (Some(at), None) => (&constraint[..at], &constraint[at + 2..], true),
        (None, Some(at)) => (&constraint[..at], &constraint[at + 2..], false),
        // A value may hold the other operator; the first one counts.
        (Some(eq), Some(ne)) => (&constraint[..eq.min(ne)], &constraint[eq.min(ne) + 2..], eq < ne),
        (None, None) => return false,
    };
    let (key, wanted) = (key.trim(), wanted.trim());
    if key.eq_ignore_ascii_case("node.ip") {
        return address_in(node.address, wanted).is_some_and(|is| is == equal);
    }
    fact(node, key).is_some_and(|is| is.eq_ignore_ascii_case(wanted) == equal)
}

/// Whether an address is another, or lies in a subnet (`10.0.0.0/24`); `None` where either makes no sense.
fn address_in(address: Option<IpAddr>, wanted: &str) -> Option<bool> {
    let address = address?;
    let Some((net, bits)) = wanted.split_once('/') else {
        return Some(address == wanted.parse::<IpAddr>().ok()?);
    };
    let bits: u32 = bits.parse().ok()?;
    match (address, net.parse::<IpAddr>().ok()?) {
        (IpAddr::V4(address), IpAddr::V4(net)) if bits <= 32 => {
            let shift = 32 - bits;
            Some(u32::from(address).checked_shr(shift) == u32::from(net).checked_shr(shift))
        }
        (IpAddr::V6(address), IpAddr::V6(net)) if bits <= 128 => {
            let shift = 128 - bits;
            Some(u128::from(address).checked_shr(shift) == u128::from(net).checked_shr(shift))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Some(false),
        _ => None,
    }
}

fn fact<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    let label = |prefix: &str| key.get(..prefix.len()).filter(|head| head.eq_ignore_ascii_case(prefix));
    if label("node.labels.").is_some() {
        return Some(node.labels.get(&key["node.labels.".len()..]).map_or("", String::as_str));
    }
    if label("engine.labels.").is_some() {
        return Some(node.engine_labels.get(&key["engine.labels.".len()..]).map_or("", String::as_str));
    }
    match key.to_ascii_lowercase().as_str() {
        "node.id" => Some(node.id.as_str()),
        "node.hostname" => Some(&node.hostname),
        "node.role" => Some(if node.manager { "manager" } else { "worker" }),
        "node.platform.os" => Some(&node.os),
        "node.platform.arch" => Some(&node.architecture),
        _ => None,
    }
}

/// Whether a node is one of these platforms (`Placement.Platforms`); an empty field fits any.
pub fn platform_fits<'a>(node: &Node, platforms: impl IntoIterator<Item = (&'a str, &'a str)>) -> bool {
    let mut any = false;
    for (os, architecture) in platforms {
        any = true;
        let os_fits = os.is_empty() || os.eq_ignore_ascii_case(&node.os);
        if os_fits && (architecture.is_empty() || usual(architecture) == usual(&node.architecture)) {
            return true;
        }
    }
    !any
}

/// Two names are in use for the common architectures; the scheduler takes them for the same.
fn usual(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::node;

    #[test]
    fn constraints_as_the_scheduler_reads_them() {
        let mut node = node("n1");
        node.hostname = "worker-1".into();
        node.labels.insert("disk".into(), "ssd".into());
        let table = [
            ("node.id==n1", true),
            ("node.id != n1", false),
            ("node.id!=n2", true),
            ("node.hostname == WORKER-1", true),
            ("node.role==manager", false),
            ("node.labels.disk==ssd", true),
            ("node.labels.disk != ssd", false),
            ("node.labels.zone==a", false),
            ("node.labels.zone!=a", true),
            ("engine.labels.x==y", false),
            ("node.platform.os==linux", true),
            ("node.ip==10.0.0.1", false),
            ("node.ip==10.0.0.7", true),
            ("node.ip!=10.0.0.7", false),
            ("node.ip==10.0.0.0/24", true),
            ("node.ip==0.0.0.0/0", true),
            ("node.ip!=10.0.1.0/24", true),
            ("node.ip==10.0.0.7/40", false),
            ("node.ip==fd00::/8", false),
            ("node.ip==somewhere", false),
            ("nonsense", false),
            ("node.labels.disk==a!=b", false),
        ];
        for (constraint, fits) in table {
            assert_eq!(satisfied(&node, [constraint]).is_ok(), fits, "{constraint}");
        }
        assert_eq!(satisfied(&node, ["node.id==n1", "node.role==manager"]), Err("node.role==manager"));
    }

    #[test]
    fn platforms() {
        let node = node("n1");
        assert!(platform_fits(&node, []));
        assert!(platform_fits(&node, [("linux", "amd64"), ("linux", "arm64")]));
        assert!(platform_fits(&node, [("linux", "")]));
        assert!(!platform_fits(&node, [("windows", "amd64")]));
        assert!(!platform_fits(&node, [("none", "none")]));
    }
}
