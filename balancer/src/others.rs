//! How many requests a replica serves for others: further balancers, and containers that ask it directly.
//!
//! Agents count requests in flight at a container's sockets, whoever sent them. What of them is not ours is what the
//! others have there. Both counts move all the time and the agent's is up to a second old, so that a difference of single
//! readings is mostly noise, and noise that only counts upwards: both are averaged over the same few seconds first, and
//! only whole requests count. Without fresh figures there is nothing, which is how it was before there were any.

use std::time::Duration;

use swarmguard_common::time::Time;

/// Over this time both counts are averaged.
const WINDOW: Duration = Duration::from_secs(3);

/// The averages of one replica.
#[derive(Clone, Copy, Debug, Default)]
pub struct Others {
    /// Requests in flight as agents count them, ours at the same time, and when that was.
    last: Option<(f32, f32, Time)>,
}

impl Others {
    /// Takes a reading; answers how many are the others', 0 where that is unknown.
    pub fn update(&mut self, counted: Option<u32>, own: u32, now: Time) -> u32 {
        let Some(counted) = counted else {
            self.last = None;
            return 0;
        };
        let (counted, own) = (float(counted), float(own));
        let (counted, own) = match self.last {
            None => (counted, own),
            Some((counted_before, own_before, at)) => {
                let part = (now.since(at).as_secs_f32() / WINDOW.as_secs_f32()).min(1.0);
                (counted_before + (counted - counted_before) * part, own_before + (own - own_before) * part)
            }
        };
        self.last = Some((counted, own, now));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, rounded down"
        )]
        let others = (counted - own).max(0.0) as u32;
        others
    }
}

fn float(count: u32) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "16 million requests in flight are exact in an f32")]
    let count = count as f32;
    count
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// A minute of readings, four a second, of `own` and `others` requests in flight on average; how often more than
    /// one request was put down to others, and the last value.
    fn minute(own: u32, others: u32) -> (usize, u32) {
        let (mut rng, mut estimate, mut last) = (Rng::with_seed(5), Others::default(), 0);
        let mut around = |mean: u32| if mean == 0 { 0 } else { rng.u32(mean / 2..=mean + mean / 2) };
        let above = (0..240).filter(|turn| {
            let (ours, seen_before) = (around(own), around(own));
            let counted = seen_before + around(others);
            last = estimate.update(Some(counted), ours, Time::from_millis(1_000 + turn * 250));
            last > 1
        });
        (above.count(), last)
    }

    #[test]
    fn alone_nothing_is_put_down_to_others() {
        assert_eq!(minute(6, 0), (0, 0));
    }

    #[test]
    fn what_others_have_there_is_seen() {
        let (above, last) = minute(4, 12);
        assert!(above > 200 && (8..=16).contains(&last), "{above} {last}");
    }

    #[test]
    fn without_figures_there_is_nothing_and_the_past_is_forgotten() {
        let mut estimate = Others::default();
        let at = Time::from_millis;
        assert_eq!(estimate.update(Some(9), 2, at(1_000)), 7);
        assert_eq!(estimate.update(None, 2, at(2_000)), 0);
        assert_eq!(estimate.update(Some(3), 2, at(3_000)), 1);
    }
}
