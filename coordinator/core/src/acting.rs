//! Which coordinator acts. Writes reach Swarm through any manager, so somebody always can: the coordinator beside the
//! raft leader does while it lives; when it is silent, the next in a fixed order does.
//!
//! A coordinator is silent when no agent hears it: agents hold connections to all coordinators and tell each of them
//! which others they hear. So all coordinators judge by the same witnesses, and nothing is written to Swarm for it. Two
//! that act at once for a moment do no harm: every write is guarded by a version, and records name their holder.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{domain::NodeId, time::Time, wire::agent::HeardCoordinator};

use crate::swarm::Snapshot;

/// A coordinator that no agent has heard for this long is silent. Agents notice silence within two seconds themselves.
pub const SILENCE: Duration = Duration::from_millis(1_500);
/// A leader's coordinator that no agent reaches for this long, though agents run, lets others act.
const DEAF: Duration = Duration::from_secs(5);
/// A coordinator in place of another acts on no reading older than this.
const VALID: Duration = Duration::from_secs(5);

/// Whose turn it is, as one coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its own: it is beside the raft leader.
    Leads,
    /// Its own, because those before it are silent.
    StandsIn {
        /// The raft leader.
        leader: NodeId,
    },
    /// That of another, which agents hear.
    Another {
        /// Its node.
        node: NodeId,
        /// It says that it acts.
        acting: bool,
    },
    /// Perhaps that of another: it has not been silent for long enough.
    Unsure {
        /// Its node.
        node: NodeId,
    },
    /// Nobody's, as far as it can tell.
    Nobody(Cause),
}

/// Why nobody's turn can be found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Swarm was not read yet.
    NotRead,
    /// The newest reading is too old.
    Stale,
    /// The swarm has no leader: too few managers are left.
    NoLeader,
    /// No agent is connected that could tell whether the leader's coordinator lives.
    NoWitness {
        /// The raft leader.
        leader: NodeId,
    },
    /// This one is beside the leader, and no agent reaches it though some run.
    Deaf,
}

impl Turn {
    /// Whether it is this coordinator's turn.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Leads | Self::StandsIn { .. })
    }

    /// Whether nobody acts, as far as this coordinator can tell.
    pub fn is_nobodys(&self) -> bool {
        matches!(self, Self::Nobody(_) | Self::Another { acting: false, .. })
    }

    /// The node whose coordinator acts, other than this one.
    pub fn other(&self) -> Option<&NodeId> {
        match self {
            Self::Another { node, acting: true } => Some(node),
            _ => None,
        }
    }

    /// The node whose coordinator an order is sent on to. It may still refuse it, and then says why better than this one
    /// could; where it is not known whether it lives, nothing is sent.
    pub fn addressee(&self) -> Option<&NodeId> {
        match self {
            Self::Another { node, .. } | Self::Nobody(Cause::NoWitness { leader: node }) => Some(node),
            Self::Leads | Self::StandsIn { .. } | Self::Unsure { .. } | Self::Nobody(_) => None,
        }
    }

    /// A stable word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Leads => "leads",
            Self::StandsIn { .. } => "stands_in",
            Self::Another { acting: true, .. } => "another_acts",
            Self::Another { acting: false, .. } => "another_idle",
            Self::Unsure { .. } => "unsure",
            Self::Nobody(Cause::NotRead) => "not_read",
            Self::Nobody(Cause::Stale) => "stale",
            Self::Nobody(Cause::NoLeader) => "no_leader",
            Self::Nobody(Cause::NoWitness { .. }) => "no_witness",
            Self::Nobody(Cause::Deaf) => "deaf",
        }
    }

    /// One sentence for people; `host` names nodes.
    pub fn text(&self, host: impl Fn(&NodeId) -> String) -> String {
        match self {
            Self::Leads => "this coordinator acts, beside the raft leader".into(),
            Self::StandsIn { leader } => format!(
                "this coordinator acts, because no agent hears the one of the raft leader {} \
                 (its node may be drained, or its coordinator ended)",
                host(leader)
            ),
            Self::Another { node, acting: true } => format!("the coordinator of {} acts", host(node)),
            Self::Another { node, acting: false } => format!(
                "nobody acts: it is the turn of the coordinator of {}, which agents hear, but it does not act \
                 (is it started with --observe?)",
                host(node)
            ),
            Self::Unsure { node } => {
                format!("whether the coordinator of {} lives is not known for another moment", host(node))
            }
            Self::Nobody(cause) => format!("nobody acts: {}", cause.text(host)),
        }
    }
}

impl Cause {
    fn text(&self, host: impl Fn(&NodeId) -> String) -> String {
        match self {
            Self::NotRead => "Swarm was not read yet".into(),
            Self::Stale => "the engine of this node has not answered for a while".into(),
            Self::NoLeader => "the swarm has no leader, because too few managers are left".into(),
            Self::NoWitness { leader } => format!(
                "no agent is connected to this coordinator, so it cannot tell whether the one of the raft leader {} lives",
                host(leader)
            ),
            Self::Deaf => {
                "no agent reaches this coordinator, though agents run (is UDP 7443 open between the nodes?)"
                    .into()
            }
        }
    }
}

/// What is remembered to judge whose turn it is. Bounded by the managers that there are.
#[derive(Clone, Debug, Default)]
pub struct Acting {
    /// Since when there have been witnesses without a break.
    witnessed: Option<Time>,
    /// Since when there have been none.
    alone: Option<Time>,
    /// When an agent last said that it hears a coordinator.
    heard: BTreeMap<NodeId, Time>,
}

impl Acting {
    /// Whose turn it is now. `witnesses`: of each agent with a live lease, the coordinators that it hears; `None` where it
    /// has not said. `agents_run`: whether Swarm shows agents on other nodes, and another coordinator.
    pub fn judge<'a>(
        &mut self,
        now: Time,
        snapshot: Option<&Snapshot>,
        witnesses: impl Iterator<Item = Option<&'a [HeardCoordinator]>>,
        agents_run: impl FnOnce(&Snapshot) -> bool,
    ) -> Turn {
        let (mut any, mut told) = (false, false);
        let mut said: BTreeMap<&NodeId, bool> = BTreeMap::new();
        for witness in witnesses {
            any = true;
            told |= witness.is_some();
            for one in witness.into_iter().flatten().filter(|one| one.able) {
                *said.entry(&one.node).or_default() |= one.acting;
            }
        }
        self.witnessed = if told { self.witnessed.or(Some(now)) } else { None };
        self.alone = if any { None } else { self.alone.or(Some(now)) };
        self.heard.retain(|_, at| now.since(*at) < SILENCE);
        self.heard.extend(said.keys().map(|node| ((*node).clone(), now)));

        let Some(snapshot) = snapshot else { return Turn::Nobody(Cause::NotRead) };
        let Some(own) = &snapshot.own_node else { return Turn::Nobody(Cause::NotRead) };
        let Some(leader) = snapshot.leader() else { return Turn::Nobody(Cause::NoLeader) };
        if leader == own {
            let deaf = self.alone.is_some_and(|since| now.since(since) >= DEAF) && agents_run(snapshot);
            return if deaf { Turn::Nobody(Cause::Deaf) } else { Turn::Leads };
        }
        if now.since(snapshot.taken) > VALID {
            return Turn::Nobody(Cause::Stale);
        }
        let Some(since) = self.witnessed else {
            return Turn::Nobody(Cause::NoWitness { leader: leader.clone() });
        };
        let managers = snapshot.nodes.values().filter(|node| node.manager && node.id != *leader);
        let before = managers.map(|node| &node.id).filter(|id| *id < own);
        for node in std::iter::once(leader).chain(before) {
            if let Some(acting) = said.get(node) {
                return Turn::Another { node: node.clone(), acting: *acting };
            }
            let last = self.heard.get(node).copied().unwrap_or(since);
            if now.since(last) < SILENCE {
                return Turn::Unsure { node: node.clone() };
            }
        }
        Turn::StandsIn { leader: leader.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::view::testing::node;

    fn id(name: &str) -> NodeId {
        name.parse().expect("an ID")
    }

    fn at(ms: u64) -> Time {
        Time::from_millis(100_000 + ms)
    }

    /// Managers m1 to m3 and a worker, as the coordinator of `own` reads them.
    fn swarm(own: &str, leader: Option<&str>, taken: Time) -> Snapshot {
        let mut snapshot = Snapshot { taken, own_node: Some(id(own)), ..Snapshot::default() };
        for name in ["m1", "m2", "m3", "w"] {
            let mut node = node(name);
            node.manager = name != "w";
            node.leader = Some(name) == leader;
            snapshot.nodes.insert(node.id.clone(), node);
        }
        snapshot
    }

    fn hears(names: &[(&str, bool)]) -> Vec<HeardCoordinator> {
        names
            .iter()
            .map(|(name, acting)| HeardCoordinator { node: id(name), able: true, acting: *acting })
            .collect()
    }

    fn judge(
        acting: &mut Acting,
        now: Time,
        snapshot: &Snapshot,
        witnesses: &[Vec<HeardCoordinator>],
    ) -> Turn {
        acting.judge(now, Some(snapshot), witnesses.iter().map(|one| Some(one.as_slice())), |_| true)
    }

    #[test]
    fn the_leaders_coordinator_acts_and_the_others_say_so() {
        let witnesses = [hears(&[("m1", false), ("m2", true), ("m3", false)])];
        let turn = |own| judge(&mut Acting::default(), at(0), &swarm(own, Some("m2"), at(0)), &witnesses);
        assert_eq!(turn("m2"), Turn::Leads);
        let another = Turn::Another { node: id("m2"), acting: true };
        assert_eq!((turn("m1"), turn("m3")), (another.clone(), another));
    }

    #[test]
    fn when_it_is_silent_the_first_of_the_others_stands_in_and_only_that_one() {
        let (mut first, mut last) = (Acting::default(), Acting::default());
        let all = [hears(&[("m1", false), ("m2", true), ("m3", false)])];
        let left = [hears(&[("m1", false), ("m3", false)]), hears(&[("m1", false), ("m3", false)])];
        let of = |own, ms| swarm(own, Some("m2"), at(ms));
        judge(&mut first, at(0), &of("m1", 0), &all);
        judge(&mut last, at(0), &of("m3", 0), &all);
        let unsure = judge(&mut first, at(1_499), &of("m1", 1_499), &left);
        assert_eq!((unsure.addressee(), &unsure), (None, &Turn::Unsure { node: id("m2") }));
        assert_eq!(
            judge(&mut first, at(1_500), &of("m1", 1_500), &left),
            Turn::StandsIn { leader: id("m2") }
        );
        assert!(judge(&mut last, at(9_000), &of("m3", 9_000), &left).is_nobodys(), "m1 is able and idle");
        let stands_in = [hears(&[("m1", true), ("m3", false)])];
        let turn = judge(&mut last, at(9_100), &of("m3", 9_100), &stands_in);
        assert_eq!(turn, Turn::Another { node: id("m1"), acting: true });
        assert_eq!(
            turn.addressee(),
            Some(&id("m1")),
            "orders go to the one that acts, not to the raft leader m2"
        );
        // It is back: nobody stands in any more.
        let back = [hears(&[("m1", true), ("m2", false)])];
        assert!(!judge(&mut first, at(9_200), &of("m1", 9_200), &back).is_own());
        // One agent that hears it is enough.
        let one = [hears(&[("m1", false)]), hears(&[("m1", false), ("m2", true)])];
        assert!(!judge(&mut first, at(20_000), &of("m1", 20_000), &one).is_own());
    }

    #[test]
    fn a_leader_that_never_had_a_coordinator_is_as_good_as_silent() {
        let mut acting = Acting::default();
        let only = [hears(&[("m3", false)])];
        let of = |ms| swarm("m3", Some("m1"), at(ms));
        assert_eq!(judge(&mut acting, at(0), &of(0), &only), Turn::Unsure { node: id("m1") });
        assert_eq!(judge(&mut acting, at(1_600), &of(1_600), &only), Turn::StandsIn { leader: id("m1") });
    }

    #[test]
    fn one_that_cannot_read_swarm_is_no_better_than_silent() {
        let mut acting = Acting::default();
        let mut blind = hears(&[("m1", false), ("m3", false)]);
        blind[0].able = false;
        let of = |ms| swarm("m3", Some("m1"), at(ms));
        judge(&mut acting, at(0), &of(0), std::slice::from_ref(&blind));
        judge(&mut acting, at(2_000), &of(2_000), std::slice::from_ref(&blind));
        assert!(judge(&mut acting, at(2_100), &of(2_100), &[blind]).is_own());
    }

    #[test]
    fn without_a_witness_a_reading_or_a_leader_nobody_stands_in() {
        let mut acting = Acting::default();
        let nobody = |turn| matches!(turn, Turn::Nobody(_));
        assert!(nobody(judge(&mut acting, at(60_000), &swarm("m3", Some("m1"), at(60_000)), &[])));
        let only = [hears(&[("m3", false)])];
        judge(&mut acting, at(60_000), &swarm("m3", Some("m1"), at(60_000)), &only);
        assert!(
            nobody(judge(&mut acting, at(70_000), &swarm("m3", Some("m1"), at(60_000)), &only)),
            "too old"
        );
        assert!(nobody(judge(&mut acting, at(70_000), &swarm("m3", None, at(70_000)), &only)));
        // Agents that have not said whom they hear are no witnesses.
        let turn =
            acting
                .judge(at(80_000), Some(&swarm("m3", Some("m1"), at(80_000))), [None].into_iter(), |_| true);
        assert_eq!(turn, Turn::Nobody(Cause::NoWitness { leader: id("m1") }));
        assert!(turn.text(ToString::to_string).contains("m1"));
    }

    #[test]
    fn a_leader_that_no_agent_reaches_lets_others_act_if_there_are_any() {
        let mut acting = Acting::default();
        let of = |ms| swarm("m1", Some("m1"), at(ms));
        assert_eq!(judge(&mut acting, at(0), &of(0), &[]), Turn::Leads);
        assert_eq!(judge(&mut acting, at(4_999), &of(4_999), &[]), Turn::Leads);
        assert_eq!(judge(&mut acting, at(5_000), &of(5_000), &[]), Turn::Nobody(Cause::Deaf));
        let none = std::iter::empty::<Option<&[HeardCoordinator]>>();
        assert_eq!(
            acting.judge(at(6_000), Some(&of(6_000)), none, |_| false),
            Turn::Leads,
            "nobody else could"
        );
    }

    proptest! {
        /// Coordinators that see the same agents: after a while of quiet exactly one acts, whoever is left.
        #[test]
        fn of_those_that_live_exactly_one_acts(
            alive in proptest::collection::vec(any::<bool>(), 3),
            leader in 0_usize..3,
            history in proptest::collection::vec((0_u64..3_000, proptest::collection::vec(any::<bool>(), 3)), 0..6),
        ) {
            let names = ["m1", "m2", "m3"];
            let mut all = [Acting::default(), Acting::default(), Acting::default()];
            let mut now = 0;
            let mut round = |all: &mut [Acting; 3], ms: u64, alive: &[bool]| {
                now += ms;
                let heard: Vec<(&str, bool)> =
                    names.iter().zip(alive).filter(|(_, alive)| **alive).map(|(name, _)| (*name, false)).collect();
                let witness = [hears(&heard)];
                let turns: Vec<bool> = all.iter_mut().zip(names).map(|(acting, own)| {
                    judge(acting, at(now), &swarm(own, Some(names[leader]), at(now)), &witness).is_own()
                }).collect();
                turns
            };
            for (ms, alive) in &history {
                round(&mut all, *ms, alive);
            }
            round(&mut all, 100, &alive);
            round(&mut all, 1_500, &alive);
            let turns = round(&mut all, 1_500, &alive);
            let acting = turns.iter().zip(&alive).filter(|(own, alive)| **own && **alive).count();
            prop_assert_eq!(acting, usize::from(alive.contains(&true)), "{:?} {:?}", turns, alive);
        }
    }
}
