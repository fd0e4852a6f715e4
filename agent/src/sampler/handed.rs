//! What the kernel's own pass handed over, found again without hashing: a pass goes through the hierarchy in the same
//! order each time, so a container is where it was, until one comes or goes.

use std::collections::HashMap;

use swarmguard_common::kernel::GroupSample;

/// The samples of one pass.
#[derive(Debug, Default)]
pub(super) struct Handed {
    samples: Vec<GroupSample>,
    /// Made when one is not where it was.
    index: Option<HashMap<u64, usize>>,
}

impl Handed {
    /// Forgets the last pass and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.samples.clear();
        self.index = None;
    }

    /// Takes a sample.
    pub(super) fn push(&mut self, sample: &GroupSample) {
        self.samples.push(*sample);
    }

    /// The sample of a cgroup, which was at `place` in the last pass; `place` is set anew.
    pub(super) fn get(&mut self, cgroup_id: u64, place: &mut usize) -> Option<&GroupSample> {
        let there = self.samples.get(*place).is_some_and(|sample| sample.cgroup_id == cgroup_id);
        if !there {
            let samples = &self.samples;
            let index = self.index.get_or_insert_with(|| {
                samples.iter().enumerate().map(|(place, sample)| (sample.cgroup_id, place)).collect()
            });
            *place = *index.get(&cgroup_id)?;
        }
        self.samples.get(*place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_found_where_it_was_and_elsewhere() {
        let mut handed = Handed::default();
        let pass = |handed: &mut Handed, ids: &[u64]| {
            handed.clear();
            ids.iter().for_each(|id| handed.push(&GroupSample { cgroup_id: *id, ..GroupSample::default() }));
        };
        let mut place = 0;
        pass(&mut handed, &[5, 6, 7]);
        assert_eq!(handed.get(7, &mut place).map(|it| it.cgroup_id), Some(7));
        assert_eq!(place, 2);
        pass(&mut handed, &[6, 7]);
        assert_eq!(handed.get(7, &mut place).map(|it| it.cgroup_id), Some(7));
        assert_eq!(place, 1);
        assert!(handed.get(5, &mut place).is_none());
        pass(&mut handed, &[]);
        assert!(handed.get(7, &mut place).is_none());
    }
}
