//! The words of the domain as types: identifiers, utilisation, conditions, health of a lease.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize, de};

/// Longest identifier taken from outside, in bytes. Docker's container IDs have 64 characters, Swarm's IDs 25.
pub const MAX_ID_BYTES: usize = 64;

/// An identifier that is empty, too long, or has a character that no Docker or Swarm identifier has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: use 1 to {MAX_ID_BYTES} ASCII letters and digits")]
pub struct InvalidId {
    /// What it was to be, for instance `node ID`.
    pub kind: &'static str,
    /// The offending text, shortened.
    pub value: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        /// Cheap to clone; compares and sorts as text.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let fits = (1..=MAX_ID_BYTES).contains(&text.len());
                if fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    Ok(Self(text.into()))
                } else {
                    let value = text.chars().take(MAX_ID_BYTES).collect();
                    Err(InvalidId { kind: $kind, value })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

id!(
    /// Swarm's identifier of a node.
    NodeId, "node ID"
);
id!(
    /// Swarm's identifier of a service.
    ServiceId, "service ID"
);
id!(
    /// Swarm's identifier of a task: one attempt to run one replica.
    TaskId, "task ID"
);
id!(
    /// The engine's identifier of a container, 64 hexadecimal digits.
    ContainerId, "container ID"
);
id!(
    /// Swarm's identifier of a network.
    NetworkId, "network ID"
);

/// A share in hundredths of a per cent (basis points): 0 is nothing, 10,000 is all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BasisPoints(pub u16);

impl BasisPoints {
    /// Nothing of it.
    pub const ZERO: Self = Self(0);
    /// All of it.
    pub const FULL: Self = Self(10_000);

    /// From whole per cent; more than 100 becomes 100.
    pub const fn from_percent(percent: u16) -> Self {
        let points = percent.saturating_mul(100);
        if points > Self::FULL.0 { Self::FULL } else { Self(points) }
    }

    /// From a ratio where 1.0 is all; held to 0..=1, and NaN is 0.
    pub fn from_ratio(ratio: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0..=10,000 first"
        )]
        let points = (ratio.clamp(0.0, 1.0) * 10_000.0).round() as u16;
        Self(points)
    }

    /// `part` of `whole`; `None` when `whole` is 0, because a share of nothing is unknown rather than idle.
    pub fn share(part: u64, whole: u64) -> Option<Self> {
        let points = u128::from(part) * 10_000 / u128::from(core::num::NonZeroU64::new(whole)?.get());
        Some(u16::try_from(points).map_or(Self::FULL, |points| Self(points.min(Self::FULL.0))))
    }

    /// As per cent, for people and for JSON.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// As a ratio where 1.0 is all.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// `self` x `factor` (1.0 keeps it), held to 0..=10,000.
    pub fn scaled(self, factor: f64) -> Self {
        Self::from_ratio(self.ratio() * factor)
    }
}

impl fmt::Display for BasisPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}

/// What an alert can be about. The numbers are part of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Condition {
    /// CPU utilisation at or over `cpu.high`.
    CpuHigh = 0,
    /// Working set at or over `memory.high`.
    MemoryHigh = 1,
    /// Network utilisation at or over `network.high`.
    NetworkHigh = 2,
    /// Tasks of the container stall (PSI) though they could run: shortens act-after.
    Stalled = 3,
    /// The kernel killed a process of the container for want of memory.
    OomKill = 4,
    /// The agent itself slowed its sampling to stay within its budget. The alert's handle is 0, no task.
    AgentOverBudget = 5,
}

impl Condition {
    /// Every condition, in wire order.
    pub const ALL: [Self; 6] = [
        Self::CpuHigh,
        Self::MemoryHigh,
        Self::NetworkHigh,
        Self::Stalled,
        Self::OomKill,
        Self::AgentOverBudget,
    ];
}

impl TryFrom<u8> for Condition {
    type Error = u8;
    fn try_from(number: u8) -> Result<Self, u8> {
        Self::ALL.get(usize::from(number)).copied().ok_or(number)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::CpuHigh => "cpu high",
            Self::MemoryHigh => "memory high",
            Self::NetworkHigh => "network high",
            Self::Stalled => "stalled",
            Self::OomKill => "oom kill",
            Self::AgentOverBudget => "agent over budget",
        })
    }
}

/// Which change of a condition an alert tells. The numbers are part of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Edge {
    /// It began to stand (after its hold).
    Raise = 0,
    /// It still stands.
    Refresh = 1,
    /// It stands no longer (below the clearing threshold).
    Clear = 2,
}

impl TryFrom<u8> for Edge {
    type Error = u8;
    fn try_from(number: u8) -> Result<Self, u8> {
        [Self::Raise, Self::Refresh, Self::Clear].get(usize::from(number)).copied().ok_or(number)
    }
}

/// What a certificate or token lets a peer do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reports about its own node.
    Agent,
    /// Reads routes and answers drain requests.
    Balancer,
    /// Is connected to; carries Swarm's manager role.
    Coordinator,
    /// Gives commands.
    Operator,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_and_a_share_of_nothing_is_unknown() {
        assert_eq!(BasisPoints::share(1, 2), Some(BasisPoints(5_000)));
        assert_eq!(BasisPoints::share(3, 2), Some(BasisPoints::FULL));
        assert_eq!(BasisPoints::share(u64::MAX, u64::MAX), Some(BasisPoints::FULL));
        assert_eq!(BasisPoints::share(1, 0), None);
        assert_eq!(BasisPoints::from_ratio(f64::NAN), BasisPoints::ZERO);
        assert_eq!(BasisPoints::from_percent(75).to_string(), "75.00 %");
    }

    #[test]
    fn ids_refuse_what_no_swarm_sends() {
        assert!("".parse::<NodeId>().is_err());
        assert!("a/../b".parse::<ServiceId>().is_err());
        assert!("x".repeat(65).parse::<TaskId>().is_err());
        assert_eq!("8rdl3m".parse::<NodeId>().map(|id| id.to_string()), Ok("8rdl3m".into()));
    }

    #[test]
    fn wire_numbers_round_trip() {
        for condition in Condition::ALL {
            assert_eq!(Condition::try_from(condition as u8), Ok(condition));
        }
        assert_eq!(Condition::try_from(6), Err(6));
        assert_eq!(Edge::try_from(2), Ok(Edge::Clear));
        assert_eq!(Edge::try_from(3), Err(3));
    }
}
