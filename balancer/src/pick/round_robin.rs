//! In turn.

/// The `turn`-th of `count`, from the beginning again after the last.
pub fn pick(count: usize, turn: u64) -> Option<usize> {
    let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
    usize::try_from(turn % count).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_its_turn() {
        let picked: Vec<_> = (0..6).filter_map(|turn| pick(3, turn)).collect();
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
        assert_eq!(pick(0, 5), None);
    }
}
