//! The rules by name: one spelling each, in verdicts, findings and refusals alike. `docs/rules.md` explains every one of
//! them; a test holds the two together.

use std::{borrow::Cow, fmt};

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// A rule that applied: a stable word for programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $($(#[$doc])* $variant,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its stable word, as the journal, the API and the docs have it.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

rules! {
    // Actions.
    /// One replica moves off a short node.
    Migrate = "migrate",
    /// A node is short, and one of its replicas moves that is not hot itself.
    Relief = "relief",
    /// A replica whose memory grows towards its limit is replaced.
    Leak = "leak",
    /// Replicas are added.
    ScaleOut = "scale_out",
    /// A replica goes that the others can do without.
    ScaleIn = "scale_in",
    /// A node that came back gets one.
    Rebalance = "rebalance",
    /// Fewer replicas than the least.
    BelowMin = "below_min",
    /// More replicas than the most.
    AboveMax = "above_max",
    /// A job runs again.
    JobAgain = "job_again",

    // Nothing is the matter.
    /// Nothing is hot, nothing is spare.
    Calm = "calm",
    /// Hot, but not for long enough.
    Holding = "holding",
    /// Hot, but it has just started: that tells of its start, not of load.
    WarmingUp = "warming_up",
    /// Hot, but its replicas are enough for what is asked of them.
    Enough = "enough",
    /// Memory grows towards its limit, which is still far away.
    LeakHolding = "leak_holding",
    /// Not known to be hot or spare.
    Unknown = "unknown",
    /// A replica is spare, but not for long enough.
    SpareHolding = "spare_holding",
    /// A replica is spare, but there are as few as there may be.
    AtMin = "at_min",
    /// A replica is spare, but somebody set their number a while ago.
    SetByHand = "set_by_hand",
    /// Its owner scaled it to none.
    SwitchedOff = "switched_off",
    /// Global services and jobs are not moved and scaled.
    NotReplicated = "not_replicated",
    /// An action on it is under way.
    ActionRunning = "action_running",
    /// A job whose nodes are there.
    Job = "job",

    // Something is the matter, and a rule forbids to act.
    /// Its labels make no sense.
    Labels = "labels",
    /// A part of SwarmGuard.
    OwnService = "own_service",
    /// Somebody else changes it.
    Rollout = "rollout",
    /// Automation is paused.
    Paused = "paused",
    /// The alert is not from where the task runs.
    StaleAlert = "stale_alert",
    /// The agent of its node is not to be believed.
    NoLease = "no_lease",
    /// Figures are missing.
    NoData = "no_data",
    /// Its network use is unknown.
    NetworkUnknown = "network_unknown",
    /// The hot replica does not run yet.
    NotServing = "not_serving",
    /// Labels forbid to move it.
    MigrateOff = "migrate_off",
    /// Its last move is too recent.
    Cooldown = "cooldown",
    /// Its last step up is too recent.
    UpCooldown = "up_cooldown",
    /// Its last step is too recent for one down.
    DownCooldown = "down_cooldown",
    /// A step up has not had time to show.
    JustScaled = "just_scaled",
    /// A move off or to its node has not had time to show.
    JustRelieved = "just_relieved",
    /// It was hot again where it was moved.
    MovedInVain = "moved_in_vain",
    /// Another container is the cause.
    Victim = "victim",
    /// At its own limit on a node that has room.
    LimitBound = "limit_bound",
    /// One replica uses far more than the others: demand is not the reason.
    Outlier = "outlier",
    /// Its heat is expected to be over before a remedy would be.
    Passes = "passes",
    /// What was done about it last did not help.
    InVain = "in_vain",
    /// As much was done unasked as may be.
    Budget = "budget",
    /// Its last attempts failed.
    BackOff = "back_off",
    /// No node is better.
    NowhereBetter = "nowhere_better",
    /// More replicas are needed, and it may not scale.
    ScalingOff = "scaling_off",
    /// More replicas are needed, and it has as many as it may.
    AtMax = "at_max",
    /// No node has room.
    NoRoom = "no_room",
    /// As many actions are under way as may be.
    Limit = "limit",
    /// As many actions leave a node as may.
    LimitNode = "limit_node",
    /// Tasks of the job go on elsewhere.
    JobGoesOn = "job_goes_on",
    /// The job was run again as often as it may.
    JobRetries = "job_retries",

    // What a service is made of.
    /// Two of it would run for a moment.
    Singleton = "singleton",
    /// It has one replica, and a second one beside it could do harm.
    NeverDoubled = "never_doubled",
    /// It runs on every node.
    Global = "global",
    /// No healthcheck.
    NoHealthcheck = "no_healthcheck",
    /// Its data stays behind.
    LocalVolumes = "local_volumes",
    /// It uses slot numbers.
    SlotTemplates = "slot_templates",
    /// Clients keep the address of a replica that goes.
    Dnsrr = "dnsrr",
    /// The stop signal kills.
    StopSignal = "stop_signal",
    /// Little time to stop.
    ShortGrace = "short_grace",
    /// It had to be killed.
    IgnoresStop = "ignores_stop",
    /// Engines that cut connections.
    EngineCutsConnections = "engine_cuts_connections",

    // Why an order cannot begin.
    /// It has as many replicas already.
    EnoughReplicas = "enough_replicas",
    /// It would be left without one.
    LastReplica = "last_replica",
    /// The source is the only manager, which is never paused, and Swarm would place the successor there.
    OnlyManager = "only_manager",
    /// There is no spec to roll back to.
    NoPreviousSpec = "no_previous_spec",
    /// Another action has the lease.
    Busy = "busy",
    /// There is no such service.
    NoService = "no_service",
    /// A rollout of somebody else is under way.
    ForeignRollout = "foreign_rollout",
    /// A mark of which no record is left.
    StrayMark = "stray_mark",
    /// Not all of its replicas run.
    NotSettled = "not_settled",
    /// No replica of it is on that node.
    Stale = "stale",
    /// There is no such node.
    NoNode = "no_node",
    /// The node is not ready, or drained.
    NodeLeaving = "node_leaving",
    /// Its lease could not be taken in time.
    LeaseNotTaken = "lease_not_taken",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl From<Rule> for Cow<'static, str> {
    fn from(rule: Rule) -> Self {
        Cow::Borrowed(rule.word())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const DOCS: &str = include_str!("../../../docs/rules.md");

    #[test]
    fn each_word_is_used_once_and_explained() {
        let words: BTreeSet<&str> = Rule::ALL.iter().map(|rule| rule.word()).collect();
        assert_eq!(words.len(), Rule::ALL.len());
        let unexplained: Vec<&str> =
            words.into_iter().filter(|word| !DOCS.contains(&format!("`{word}`"))).collect();
        assert_eq!(unexplained, [""; 0], "docs/rules.md does not explain them");
    }

    #[test]
    fn the_tables_of_rules_name_none_that_does_not_exist() {
        let words: BTreeSet<&str> = Rule::ALL.iter().map(|rule| rule.word()).collect();
        let (_, refusals) = DOCS.split_once("## What is refused").expect("the chapter");
        let (refusals, _) = refusals.split_once("\n\n##").expect("another chapter");
        let rows = DOCS.lines().filter(|line| line.starts_with("| `")).chain(refusals.lines());
        for row in rows.filter(|row| row.starts_with("| `")) {
            let first = row.split('|').nth(1).expect("a column");
            for word in first.split('`').skip(1).step_by(2) {
                assert!(words.contains(word), "docs/rules.md names `{word}`");
            }
        }
    }
}
