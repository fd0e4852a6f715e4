//! The fast path's readers against heads that nobody would write: what the fuzz targets `request_heads` and `answers` do
//! for hours on a nightly compiler, for some seconds and with the stable one, in every `cargo test`.

use std::{fs, path::Path};

use proptest::{
    prelude::{ProptestConfig, Strategy, any, prop, prop_oneof, proptest},
    sample::Index,
};
use swarmguard_balancer::hostile;

type Reader = fn(&[u8]);

const TARGETS: [(&str, Reader); 4] = [
    ("request_heads", hostile::request_heads),
    ("answers", hostile::answers),
    ("framing", hostile::framing),
    ("http2_heads", hostile::http2_heads),
];

/// The texts that fuzzing of a target starts from.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(directory).expect("every target has seeds").flatten().map(|it| it.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Cut(Index, usize),
    Insert(Index, &'static str),
}

fn damage() -> impl Strategy<Value = Damage> {
    let telling = prop::sample::select(vec![
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        " ",
        ":",
        "\0",
        ",",
        "\r\nContent-Length: 0",
        "\r\nContent-Length: 3",
        "\r\nTransfer-Encoding: chunked",
        "\r\nConnection: close",
        "\r\nConnection: content-length",
        "\r\nHost: y",
        "\r\nX-Forwarded-For: 1.2.3.4",
        "0",
        "ffffffff",
    ]);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), 1_usize..20).prop_map(|(at, length)| Damage::Cut(at, length)),
        (any::<Index>(), telling).prop_map(|(at, text)| Damage::Insert(at, text)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    match damage {
        Damage::Set(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Damage::Cut(at, length) => {
            let at = at.index(bytes.len());
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        Damage::Insert(at, text) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, text.bytes());
        }
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
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn random_bytes(data: Vec<u8>) {
        TARGETS.iter().for_each(|(_, read)| read(&data));
    }

    #[test]
    fn damaged_heads(which: Index, damages in prop::collection::vec(damage(), 1..6)) {
        for (name, read) in TARGETS {
            let seeds = seeds(name);
            let mut data = seeds[which.index(seeds.len())].clone();
            damages.iter().for_each(|it| apply(&mut data, it));
            read(&data);
        }
    }
}
