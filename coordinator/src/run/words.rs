//! The words of metrics' labels: one for each kind, outcome, state and condition.

use swarmguard_common::domain::{Condition, Edge};
use swarmguard_core::{
    command::{Command, CommandError, CommandResult},
    lease::LeaseState,
};

pub(super) fn kind_of(command: &Command) -> &'static str {
    match command {
        Command::CreateRecord { .. } => "create_record",
        Command::UpdateRecord { .. } => "update_record",
        Command::RemoveRecord { .. } => "remove_record",
        Command::WriteService { .. } => "write_service",
        Command::WriteNode { .. } => "write_node",
        Command::DrainBalancers { .. } => "drain_balancers",
        Command::ResumeBalancers { .. } => "resume_balancers",
    }
}

pub(super) fn outcome_of(result: &CommandResult) -> &'static str {
    match result {
        Ok(()) => "ok",
        Err(CommandError::Conflict(_)) => "conflict",
        Err(CommandError::Gone(_)) => "gone",
        Err(CommandError::Refused(_)) => "refused",
        Err(CommandError::Unavailable(_)) => "unavailable",
    }
}

pub(super) fn lease_word(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Live => "live",
        LeaseState::Suspect => "suspect",
        LeaseState::Lapsed => "lapsed",
    }
}

pub(super) fn condition_word(condition: Condition) -> &'static str {
    match condition {
        Condition::CpuHigh => "cpu_high",
        Condition::MemoryHigh => "memory_high",
        Condition::NetworkHigh => "network_high",
        Condition::Stalled => "stalled",
        Condition::OomKill => "oom_kill",
        Condition::AgentOverBudget => "agent_over_budget",
    }
}

pub(super) fn edge_word(edge: Edge) -> &'static str {
    match edge {
        Edge::Raise => "raise",
        Edge::Refresh => "refresh",
        Edge::Clear => "clear",
    }
}
