//! Every reader of foreign text against bytes that nobody would write: what the fuzz targets in `fuzz/` do for hours on
//! a nightly compiler, for some seconds and with the stable one, in every `cargo test`.
//!
//! Bytes are random, or real texts that were damaged: random ones never get past the first word of a parser.

use std::{fs, path::Path};

use proptest::prelude::*;
use swarmguard_agent::hostile;

type Reader = fn(&[u8]);

const TARGETS: [(&str, Reader); 5] = [
    ("kernel_files", hostile::kernel_files),
    ("kernel_records", hostile::kernel_records),
    ("engine_answers", hostile::engine_answers),
    ("names", hostile::names),
    ("messages", hostile::messages),
];

/// The texts that fuzzing of a target starts from.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(dir).expect("every target has seeds").flatten().map(|it| it.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

#[derive(Clone, Debug)]
enum Damage {
    Set(usize, u8),
    Cut(usize, usize),
    Double(usize, usize),
    Insert(usize, Vec<u8>),
    End(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<usize>(), 1_usize..40).prop_map(|(at, length)| Damage::Cut(at, length)),
        (any::<usize>(), 1_usize..40).prop_map(|(at, length)| Damage::Double(at, length)),
        (any::<usize>(), "[0-9]{1,24}|[ \\n:,]{1,3}|-|max")
            .prop_map(|(at, text)| Damage::Insert(at, text.into())),
        any::<usize>().prop_map(Damage::End),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let place = |at: usize, length: usize| at.checked_rem(length).unwrap_or(0);
    let length = bytes.len();
    match damage {
        Damage::Set(at, byte) => {
            if let Some(slot) = bytes.get_mut(place(*at, length)) {
                *slot = *byte;
            }
        }
        Damage::Cut(at, count) => {
            let start = place(*at, length);
            bytes.drain(start..(start + count).min(length));
        }
        Damage::Double(at, count) => {
            let start = place(*at, length);
            let part = bytes[start..(start + count).min(length)].to_vec();
            bytes.splice(start..start, part);
        }
        Damage::Insert(at, what) => {
            let start = place(*at, length);
            bytes.splice(start..start, what.iter().copied());
        }
        Damage::End(at) => bytes.truncate(place(*at, length)),
    }
}

#[test]
fn seeds_are_read_without_complaint() {
    for (name, read) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has seeds");
        seeds.iter().for_each(|seed| read(seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn random_bytes(data: Vec<u8>) {
        TARGETS.iter().for_each(|(_, read)| read(&data));
    }

    #[test]
    fn damaged_texts(which: usize, seed: usize, damages in proptest::collection::vec(damage(), 1..6)) {
        let (name, read) = TARGETS[which % TARGETS.len()];
        let seeds = seeds(name);
        let mut data = seeds[seed % seeds.len()].clone();
        damages.iter().for_each(|damage| apply(&mut data, damage));
        read(&data);
    }
}
