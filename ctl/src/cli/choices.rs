//! Words that some options choose among.

/// Kinds of things that `cleanup` removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Stopped containers.
    Containers,
    /// Images without a name.
    Images,
    /// Unused networks.
    Networks,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// What a failed deployment rolls back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rollback {
    /// The services that failed.
    Service,
    /// All services that were changed.
    Stack,
    /// Nothing.
    Never,
}

/// Kinds of journal entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EntryKind {
    /// An alert edge of an agent.
    Alert,
    /// Something is to be done.
    Decision,
    /// Something is not to be done.
    Refusal,
    /// A step of an action.
    Action,
    /// A lease or a peer came or went.
    Lease,
    /// Something to know.
    Notice,
    /// An operator's command.
    Operator,
}
