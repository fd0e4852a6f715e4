//! What happens at a time: nodes go and come, operators do things, replicas break.

use std::time::Duration;

use super::{ServiceSpec, read::Section};

/// Something that happens.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, from the start.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What happens. Nodes and services by their index in the file.
#[derive(Clone, Debug)]
pub enum What {
    /// A node loses its power.
    PowerOff(usize),
    /// It has it again.
    PowerOn(usize),
    /// `docker node update --availability active`.
    Activate(usize),
    /// `docker node update --availability pause`.
    Pause(usize),
    /// `docker node update --availability drain`.
    Drain(usize),
    /// `docker service scale`.
    Scale {
        /// Of which service.
        service: usize,
        /// To how many.
        replicas: u64,
    },
    /// `docker service update` with a new image: all replicas are replaced.
    Update {
        /// Of which service.
        service: usize,
        /// `--update-parallelism`.
        parallelism: u64,
        /// `--update-order start-first`.
        start_first: bool,
    },
    /// Further starts fail by this share.
    FailingStarts {
        /// Of which service.
        service: usize,
        /// 1 is all of them.
        share: f64,
    },
    /// One replica burns so many CPUs for a while, whatever is asked of it.
    Spin {
        /// Of which service.
        service: usize,
        /// How many.
        cpus: f64,
        /// How long.
        length: Duration,
    },
    /// One replica dies.
    Kill {
        /// Of which service.
        service: usize,
    },
    /// The agent of a node is silent for a while.
    Mute {
        /// Which node.
        node: usize,
        /// How long.
        length: Duration,
    },
    /// The agent of a node tells for a while that every container uses all it may.
    Lie {
        /// Which node.
        node: usize,
        /// How long.
        length: Duration,
    },
    /// The coordinator's program starts anew.
    Restart,
    /// An operator pauses all automation.
    PauseAll,
    /// An operator takes that back.
    ResumeAll,
}

#[derive(Clone, Copy)]
enum Word {
    PowerOff,
    PowerOn,
    Activate,
    Pause,
    Drain,
    Scale,
    Update,
    FailingStarts,
    Spin,
    Kill,
    Mute,
    Lie,
    Restart,
    PauseAll,
    ResumeAll,
}

const WORDS: [(&str, Word); 15] = [
    ("power-off", Word::PowerOff),
    ("power-on", Word::PowerOn),
    ("activate", Word::Activate),
    ("pause", Word::Pause),
    ("drain", Word::Drain),
    ("scale", Word::Scale),
    ("update", Word::Update),
    ("failing-starts", Word::FailingStarts),
    ("spin", Word::Spin),
    ("kill", Word::Kill),
    ("mute", Word::Mute),
    ("lie", Word::Lie),
    ("restart-coordinator", Word::Restart),
    ("pause-all", Word::PauseAll),
    ("resume-all", Word::ResumeAll),
];

/// `None` where the event cannot be understood; that is noted.
pub(super) fn read(section: &Section<'_, '_>, services: &[ServiceSpec], nodes: usize) -> Option<Event> {
    let day = Duration::from_secs(7 * 86_400);
    let at = section.duration("at", Duration::ZERO, Duration::ZERO..=day);
    let word = section.choice("do", None, &WORDS.map(|(name, word)| (name, Some(word))));
    if word.is_none() && !section.has("do") {
        section.refuse("do", format!("one of {}", WORDS.map(|(name, _)| name).join(", ")));
    }
    // Every key is asked for whatever the word is, so that all are known; which ones count is said in the docs.
    let node = section.whole("node", 1, 1..=u64::try_from(nodes.max(1)).unwrap_or(1));
    let node = usize::try_from(node - 1).unwrap_or(0);
    let name = section.text("service", "");
    let length = section.duration("length", Duration::from_secs(60), Duration::ZERO..=day);
    let replicas = section.whole("replicas", 1, 0..=10_000);
    let parallelism = section.whole("parallelism", 1, 0..=10_000);
    let start_first = section.choice("order", true, &[("start-first", true), ("stop-first", false)]);
    let share = section.number("share", 1.0, 0.0..=1.0);
    let cpus = section.number("cpus", 1.0, 0.0..=1_024.0);
    section.finish(&[]);
    let service = services.iter().position(|service| service.name == name);
    let of_service = || {
        if service.is_none() {
            section.refuse("service", "the name of one of [[services]]");
        }
        service
    };
    let what = match word? {
        Word::PowerOff => What::PowerOff(node),
        Word::PowerOn => What::PowerOn(node),
        Word::Activate => What::Activate(node),
        Word::Pause => What::Pause(node),
        Word::Drain => What::Drain(node),
        Word::Scale => What::Scale { service: of_service()?, replicas },
        Word::Update => What::Update { service: of_service()?, parallelism, start_first },
        Word::FailingStarts => What::FailingStarts { service: of_service()?, share },
        Word::Spin => What::Spin { service: of_service()?, cpus, length },
        Word::Kill => What::Kill { service: of_service()? },
        Word::Mute => What::Mute { node, length },
        Word::Lie => What::Lie { node, length },
        Word::Restart => What::Restart,
        Word::PauseAll => What::PauseAll,
        Word::ResumeAll => What::ResumeAll,
    };
    Some(Event { at, what })
}
