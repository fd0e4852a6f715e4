//! What the terminal view shows and where the user is in it. No IO here: keys and news come in, wishes go out.

use std::collections::VecDeque;

use swarmguard_common::{
    api::{ContainerStatus, Explanation, Overview},
    journal::Entry,
    time::Time,
};

use crate::{
    commands::{events, lists},
    out::{Cell, Column, Listing, Row, Style, time_of_day},
};

/// Entries of the journal that are kept.
const MAX_ENTRIES: usize = 500;
/// Longest filter or answer that can be typed.
const MAX_TYPED: usize = 80;
/// From this age on the view is stale, in milliseconds.
pub const STALE_MS: u128 = 3_000;

/// A part of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    /// Nodes.
    Nodes,
    /// Services.
    Services,
    /// The journal, the newest first.
    Journal,
}

impl Pane {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Nodes, Self::Services, Self::Journal];

    /// Its heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Nodes => "Nodes",
            Self::Services => "Services",
            Self::Journal => "Journal",
        }
    }

    /// Its place in lists.
    pub const fn index(self) -> usize {
        match self {
            Self::Nodes => 0,
            Self::Services => 1,
            Self::Journal => 2,
        }
    }
}

/// What is looked at closely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// A service, by name: replicas, verdict, decisions.
    Service(String),
    /// A node, by host name: what runs there.
    Node(String),
    /// An action, by token: its steps.
    Action(String),
    /// The keys.
    Help,
}

/// What is typed at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A filter.
    Filter(String),
    /// The word that confirms a change.
    Confirm {
        /// What would be done, as the coordinator says it; `None` until it has.
        plan: Option<String>,
        /// The change.
        change: Change,
        /// What was typed so far.
        typed: String,
    },
}

/// A change that can be made here, with `--write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The command's name.
    pub command: &'static str,
    /// Its parameters.
    pub body: serde_json::Value,
}

/// What the user wants that needs more than the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To leave.
    Quit,
    /// To have the screen in a file.
    Save,
    /// To know what a change would do.
    Plan(Change),
    /// A change.
    Make(Change),
}

/// How a pane is sorted and where its cursor is.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Row under the cursor.
    pub row: usize,
    /// Index of the column that sorts; the usual order where `None`.
    pub sort: Option<usize>,
    /// The other way round.
    pub turned: bool,
}

/// Everything.
#[derive(Debug)]
pub struct Model {
    /// The swarm; `None` before the first answer.
    pub overview: Option<Overview>,
    /// When it came.
    pub heard: Time,
    /// Why nothing newer came.
    pub trouble: Option<String>,
    /// The newest last.
    pub journal: VecDeque<Entry>,
    /// Replicas of what is looked at closely.
    pub containers: Vec<ContainerStatus>,
    /// The verdict on the service that is looked at closely.
    pub explanation: Option<Explanation>,
    /// The active pane.
    pub pane: Pane,
    /// Cursor and order of each pane.
    pub places: [Place; 3],
    /// What is looked at closely, the last on top.
    pub pages: Vec<Page>,
    /// Words that all must be in a row.
    pub filter: String,
    /// What is typed.
    pub prompt: Option<Prompt>,
    /// One line about what just happened.
    pub message: Option<String>,
    /// Nothing is taken in.
    pub frozen: bool,
    /// Changes are allowed.
    pub write: bool,
    /// What the terminal can show.
    pub style: Style,
}

impl Model {
    /// Nothing is known yet.
    pub fn new(style: Style, write: bool, now: Time) -> Self {
        Self {
            overview: None,
            heard: now,
            trouble: None,
            journal: VecDeque::new(),
            containers: Vec::new(),
            explanation: None,
            pane: Pane::Services,
            places: Default::default(),
            pages: Vec::new(),
            filter: String::new(),
            prompt: None,
            message: None,
            frozen: false,
            write,
            style,
        }
    }

    /// A new answer.
    pub fn take(&mut self, overview: Overview, now: Time) {
        if !self.frozen {
            self.overview = Some(overview);
            self.heard = now;
            self.trouble = None;
        }
    }

    /// The answer was the same as before: only the ages have grown.
    pub fn take_unchanged(&mut self, now: Time) {
        if self.frozen {
            return;
        }
        let grown = u64::try_from((now - self.heard).as_millis()).unwrap_or(u64::MAX);
        if let Some(overview) = &mut self.overview {
            overview.at_ms += grown;
            overview
                .nodes
                .iter_mut()
                .filter_map(|node| node.lease_age_ms.as_mut())
                .for_each(|age| *age += grown);
            overview.alerts.iter_mut().for_each(|alert| alert.stands_ms += grown);
            for action in &mut overview.actions {
                action.step_ms += grown;
                action.total_ms = action.total_ms.map(|total| total + grown);
            }
        }
        self.heard = now;
        self.trouble = None;
    }

    /// An entry of the journal.
    pub fn add(&mut self, entry: Entry) {
        if self.journal.back().is_some_and(|last| last.id >= entry.id) {
            return;
        }
        if self.journal.len() >= MAX_ENTRIES {
            self.journal.pop_front();
        }
        self.journal.push_back(entry);
    }

    /// Age of what is shown, where that is too old.
    pub fn stale(&self, now: Time) -> Option<u64> {
        let age = (now - self.heard).as_millis();
        (age >= STALE_MS && !self.frozen).then(|| u64::try_from(age).unwrap_or(u64::MAX))
    }

    /// A pane's rows: filtered and sorted.
    pub fn listing(&self, pane: Pane) -> Listing {
        let empty = || Listing { kind: "", columns: vec![Column::text("")], rows: Vec::new() };
        let Some(overview) = &self.overview else { return empty() };
        let mut listing = match pane {
            Pane::Nodes => lists::nodes_of(overview),
            Pane::Services => lists::services_of(overview),
            Pane::Journal => self.entries(overview),
        };
        for word in self.filter.split_whitespace() {
            listing.keep_word(word);
        }
        let place = &self.places[pane.index()];
        if let Some(column) = place.sort {
            listing.sort_by(column, place.turned);
        }
        listing
    }

    fn entries(&self, overview: &Overview) -> Listing {
        let columns = vec![
            Column::text("TIME"),
            Column::text("KIND"),
            Column::text("RULE"),
            Column::text("SERVICE"),
            Column::text("NODE"),
            Column::text("TEXT"),
        ];
        let host = |id: Option<&str>| {
            let Some(id) = id else { return String::new() };
            let node = overview.nodes.iter().find(|node| node.node.as_str() == id);
            node.map_or_else(|| id.to_owned(), |node| node.hostname.clone())
        };
        let rows = self.journal.iter().rev().map(|entry| {
            let (word, tone) = events::kind_word(entry.kind);
            Row {
                name: entry.action.clone().unwrap_or_default(),
                cells: vec![
                    Cell::new(time_of_day(entry.at_ms)),
                    Cell::new(word).tone(tone),
                    Cell::new(&entry.code),
                    Cell::new(entry.service_name.as_deref().unwrap_or("")),
                    Cell::new(host(entry.node.as_ref().map(|node| node.as_str()))),
                    Cell::new(&entry.text),
                ],
                value: serde_json::Value::Null,
            }
        });
        Listing { kind: "EntryList", columns, rows: rows.collect() }
    }

    /// What stands under the cursor of the active pane.
    pub fn selected(&self) -> Option<Row> {
        let mut rows = self.listing(self.pane).rows;
        let at = self.places[self.pane.index()].row.min(rows.len().checked_sub(1)?);
        Some(rows.swap_remove(at))
    }

    /// Takes what is typed; `true` where it fits.
    pub fn typed(text: &mut String, c: char) -> bool {
        let fits = !c.is_control() && text.chars().count() < MAX_TYPED;
        if fits {
            text.push(c);
        }
        fits
    }
}
