//! Alerts on their way: numbered once, kept until every coordinator has them, bounded. Pure.

use std::collections::VecDeque;

use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge},
    time::Time,
};

/// Most alerts kept. A coordinator that is away for longer learns what stands when it is back, only not its history.
pub const MAX_KEPT: usize = 4_096;

/// An alert as it is kept; its age is worked out when it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Number within the epoch.
    pub seq: u64,
    /// The container, 0 for the agent itself.
    pub handle: u32,
    /// What about.
    pub condition: Condition,
    /// Which change.
    pub edge: Edge,
    /// The value that crossed.
    pub value: BasisPoints,
    /// When the condition began to stand or ended.
    pub since: Time,
}

/// Alerts that some coordinator may not have yet, oldest first.
#[derive(Debug, Default)]
pub struct Outbox {
    last_seq: u64,
    kept: VecDeque<Kept>,
    dropped: u64,
    nobody: bool,
}

impl Outbox {
    /// There is nobody to tell, and never will be: alerts are numbered, and not kept.
    pub fn for_nobody(&mut self) {
        self.nobody = true;
    }

    /// Numbers an alert and keeps it. A refresh replaces an earlier refresh of the same condition, of which it says
    /// all; numbers may therefore be missing when alerts are sent again, never out of order.
    pub fn push(
        &mut self,
        handle: u32,
        condition: Condition,
        edge: Edge,
        value: BasisPoints,
        since: Time,
    ) -> u64 {
        if edge == Edge::Refresh {
            let same = |kept: &Kept| (kept.handle, kept.condition, kept.edge) == (handle, condition, edge);
            if let Some(index) = self.kept.iter().rposition(same) {
                self.kept.remove(index);
            }
        }
        if self.kept.len() >= MAX_KEPT {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.last_seq += 1;
        if self.nobody {
            return self.last_seq;
        }
        self.kept.push_back(Kept { seq: self.last_seq, handle, condition, edge, value, since });
        self.last_seq
    }

    /// Kept alerts after `seq`, oldest first.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &Kept> {
        let from = self.kept.partition_point(|kept| kept.seq <= seq);
        self.kept.range(from..)
    }

    /// Forgets alerts up to and including `seq`: every coordinator has them.
    pub fn forget(&mut self, seq: u64) {
        while self.kept.front().is_some_and(|kept| kept.seq <= seq) {
            self.kept.pop_front();
        }
    }

    /// Whether an alert of this container is kept.
    pub fn mentions(&self, handle: u32) -> bool {
        self.kept.iter().any(|kept| kept.handle == handle)
    }

    /// The number given last; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many were dropped because there was no room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(outbox: &mut Outbox, handle: u32, edge: Edge) -> u64 {
        outbox.push(handle, Condition::CpuHigh, edge, BasisPoints::FULL, Time::ZERO)
    }

    #[test]
    fn alerts_are_kept_in_order_until_forgotten() {
        let mut outbox = Outbox::default();
        for _ in 0..5 {
            push(&mut outbox, 1, Edge::Raise);
        }
        assert_eq!(outbox.after(2).map(|kept| kept.seq).collect::<Vec<_>>(), [3, 4, 5]);
        outbox.forget(4);
        assert_eq!(outbox.after(0).map(|kept| kept.seq).collect::<Vec<_>>(), [5]);
        outbox.forget(99);
        assert!(outbox.is_empty() && outbox.last_seq() == 5);
    }

    #[test]
    fn only_the_newest_refresh_is_kept_and_edges_all() {
        let mut outbox = Outbox::default();
        push(&mut outbox, 1, Edge::Raise);
        for _ in 0..100 {
            push(&mut outbox, 1, Edge::Refresh);
            push(&mut outbox, 2, Edge::Refresh);
        }
        assert_eq!(
            outbox.after(0).map(|kept| (kept.seq, kept.handle)).collect::<Vec<_>>(),
            [(1, 1), (200, 1), (201, 2)]
        );
        assert!(outbox.mentions(2) && !outbox.mentions(3));
    }

    #[test]
    fn it_is_bounded_and_drops_are_counted() {
        let mut outbox = Outbox::default();
        for _ in 0..MAX_KEPT + 7 {
            push(&mut outbox, 1, Edge::Raise);
        }
        assert_eq!((outbox.len(), outbox.dropped()), (MAX_KEPT, 7));
        assert_eq!(outbox.after(0).next().map(|kept| kept.seq), Some(8));
    }
}
