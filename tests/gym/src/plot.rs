//! A picture of a run as SVG: demand and late requests, replicas beside the oracle's, nodes, and every action with its
//! reason. Written by hand: a few lines and texts need no library.

use std::fmt::Write as _;

use crate::{
    controller::{Act, End},
    number::{real, real_len},
    scenario::Scenario,
    world::Run,
};

const WIDTH: f64 = 1_120.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const PANEL: f64 = 130.0;
const GAP: f64 = 38.0;
const TOP: f64 = 64.0;
const LINE: f64 = 16.0;
/// Points of a curve; more could not be told apart.
const POINTS: usize = 600;
/// Letters of a line that fit the picture.
const MOST_LETTERS: usize = 165;
/// Actions that are listed below the picture.
const MOST_LISTED: usize = 40;
/// Colours that are told apart by colour-blind people, too (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];
const GOOD: &str = "#009e73";
const BAD: &str = "#d55e00";
const UNKNOWN: &str = "#7f7f7f";

/// Draws a run; `policy` and `seed` are for its title.
pub fn draw(scenario: &Scenario, policy: &str, seed: u64, run: &Run) -> String {
    let listed = run.acts.all.len().min(MOST_LISTED) + usize::from(run.acts.all.len() > MOST_LISTED);
    let below = TOP + 4.0 * (PANEL + GAP) + 8.0;
    let height = below + LINE * (real_len(listed) + 3.0);
    let mut svg = Svg { out: String::new(), seconds: real_len(run.record.seconds.len()).max(1.0) };
    let _ = write!(
        svg.out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n"
    );
    svg.title(scenario, policy, seed, run);
    svg.demand(scenario, run, TOP);
    svg.late(scenario, run, TOP + PANEL + GAP);
    svg.replicas(scenario, run, TOP + 2.0 * (PANEL + GAP));
    svg.nodes(scenario, run, TOP + 3.0 * (PANEL + GAP));
    svg.acts(scenario, run, below);
    svg.out.push_str("</svg>\n");
    svg.out
}

struct Svg {
    out: String,
    seconds: f64,
}

impl Svg {
    fn x(&self, second: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * second / self.seconds
    }

    fn text(&mut self, x: f64, y: f64, style: &str, text: &str) {
        let _ = writeln!(self.out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>", escape(text));
    }

    fn title(&mut self, scenario: &Scenario, policy: &str, seed: u64, run: &Run) {
        let title = format!("{} — {policy}, seed {seed}", scenario.name);
        self.text(LEFT, 20.0, "font-size=\"15\" font-weight=\"bold\"", &title);
        let score = &run.score;
        let scores = format!(
            "late {:.2} % · cost {:.2} x the oracle's · {:.1} actions/h, {:.1} useless · relief {:.0} s · busiest node \
             {:.0} %",
            score.late_percent,
            score.cost,
            score.actions_per_hour,
            score.useless_per_hour,
            score.relief_s,
            score.worst_node_percent
        );
        self.text(LEFT, 38.0, "fill=\"#444\"", &scores);
    }

    /// Frame, title, and scales of a panel; `most` is the top of its scale.
    fn panel(&mut self, y: f64, title: &str, most: f64, unit: &str) {
        let (width, bottom) = (WIDTH - LEFT - RIGHT, y + PANEL);
        self.text(LEFT, y - 6.0, "font-weight=\"bold\"", title);
        let _ = writeln!(
            self.out,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width}\" height=\"{PANEL}\" fill=\"none\" stroke=\"#bbb\"/>"
        );
        for part in 0..=2_u32 {
            let at = f64::from(part) / 2.0;
            let level = bottom - PANEL * at;
            let _ = writeln!(
                self.out,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{level:.1}\" y2=\"{level:.1}\" stroke=\"#eee\"/>",
                LEFT + width
            );
            // The lowest stands a little higher, clear of the time below it.
            let raised = if part == 0 { 0.0 } else { 4.0 };
            self.text(
                LEFT - 6.0,
                level + raised,
                "text-anchor=\"end\" fill=\"#444\"",
                &short(most * at, unit),
            );
        }
        let minutes = self.seconds / 60.0;
        let step = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 240.0, 360.0, 720.0, 1_440.0]
            .into_iter()
            .find(|step| minutes / step <= 12.0)
            .unwrap_or(1_440.0);
        let mut minute = 0.0;
        while minute <= minutes {
            let x = self.x(minute * 60.0);
            let label = if step >= 60.0 { format!("{} h", minute / 60.0) } else { format!("{minute} min") };
            self.text(x, bottom + 13.0, "text-anchor=\"middle\" fill=\"#444\"", &label);
            minute += step;
        }
    }

    /// A curve of one value a second. The highest of each group of seconds is drawn, so that no peak is lost.
    fn curve(&mut self, y: f64, most: f64, colour: &str, style: &str, values: &[f64]) {
        let group = values.len().div_ceil(POINTS).max(1);
        let mut points = String::new();
        for (index, chunk) in values.chunks(group).enumerate() {
            let value = chunk.iter().copied().fold(0.0, f64::max).min(most);
            let x = self.x(real_len(index * group));
            let level = y + PANEL - PANEL * value / most.max(1e-9);
            let _ = write!(points, "{x:.1},{level:.1} ");
        }
        let _ = writeln!(
            self.out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\" {style} points=\"{}\"/>",
            points.trim_end()
        );
    }

    fn legend(&mut self, y: f64, number: usize, colour: &str, style: &str, text: &str) {
        let (x, level) = (WIDTH - RIGHT + 12.0, y + 10.0 + real_len(number) * LINE);
        if number > 7 {
            return;
        }
        let _ = writeln!(
            self.out,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{level}\" y2=\"{level}\" stroke=\"{colour}\" stroke-width=\"2\" {style}/>",
            x + 18.0
        );
        self.text(x + 23.0, level + 4.0, "", &text.chars().take(18).collect::<String>());
    }

    fn demand(&mut self, scenario: &Scenario, run: &Run, y: f64) {
        let of = |service: usize| -> Vec<f64> {
            run.record.seconds.iter().map(|second| second.services[service].offered).collect()
        };
        let all: Vec<Vec<f64>> = (0..scenario.services.len()).map(of).collect();
        let most = top(all.iter().flatten().copied());
        self.panel(y, "CPUs asked for", most, "");
        for (service, values) in all.iter().enumerate() {
            let colour = COLOURS[service % COLOURS.len()];
            self.curve(y, most, colour, "", values);
            self.legend(y, service, colour, "", &scenario.services[service].name);
        }
        self.marks(run, y);
    }

    fn late(&mut self, scenario: &Scenario, run: &Run, y: f64) {
        self.panel(y, "Requests late, refused or lost (of 5 s)", 100.0, " %");
        for service in 0..scenario.services.len() {
            let share = |second: usize| {
                run.record.tally(second.saturating_sub(4), second + 1, service).bad_share() * 100.0
            };
            let values: Vec<f64> = (0..run.record.seconds.len()).map(share).collect();
            self.curve(y, 100.0, COLOURS[service % COLOURS.len()], "", &values);
        }
        self.marks(run, y);
    }

    fn replicas(&mut self, scenario: &Scenario, run: &Run, y: f64) {
        let of = |service: usize| -> Vec<f64> {
            run.record.seconds.iter().map(|second| real(second.services[service].replicas)).collect()
        };
        let ours: Vec<Vec<f64>> = (0..scenario.services.len()).map(of).collect();
        let oracle: Vec<Vec<f64>> =
            run.oracle.iter().map(|seconds| seconds.iter().map(|it| real(*it)).collect()).collect();
        let most = top(ours.iter().chain(&oracle).flatten().copied());
        self.panel(y, "Replicas asked for", most, "");
        let scales = scenario.services.iter().any(crate::scenario::ServiceSpec::scales);
        for (service, (values, known)) in ours.iter().zip(&oracle).enumerate() {
            let colour = COLOURS[service % COLOURS.len()];
            if scenario.services[service].scales() {
                self.curve(y, most, colour, "stroke-dasharray=\"3 3\" opacity=\"0.7\"", known);
            }
            self.curve(y, most, colour, "", values);
            self.legend(y, service, colour, "", &scenario.services[service].name);
        }
        if scales {
            let number = scenario.services.len().min(7);
            self.legend(y, number, "#444", "stroke-dasharray=\"3 3\"", "oracle");
        }
        self.marks(run, y);
    }

    fn nodes(&mut self, scenario: &Scenario, run: &Run, y: f64) {
        self.panel(y, "CPUs of nodes in use (mean of 5 s)", 100.0, " %");
        for (node, spec) in scenario.nodes.iter().enumerate() {
            let colour = COLOURS[node % COLOURS.len()];
            let share = |second: usize| {
                run.record.mean(second.saturating_sub(4), second + 1, |it| it.nodes[node].used) * 100.0
            };
            let values: Vec<f64> = (0..run.record.seconds.len()).map(share).collect();
            self.curve(y, 100.0, colour, "stroke-opacity=\"0.85\"", &values);
            self.legend(y, node, colour, "", &format!("node{} ({} CPUs)", node + 1, spec.cpus));
        }
        self.marks(run, y);
    }

    /// A line through a panel where an action began, in the colour of what it was worth.
    fn marks(&mut self, run: &Run, y: f64) {
        for (number, act) in run.acts.all.iter().take(MOST_LISTED).enumerate() {
            let x = self.x((act.begun - run.record.start).as_secs_f64());
            let colour = colour(act);
            let _ = writeln!(
                self.out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y}\" y2=\"{}\" stroke=\"{colour}\" stroke-width=\"0.8\" \
                 stroke-opacity=\"0.7\"/>",
                y + PANEL
            );
            let style = format!("font-size=\"9\" fill=\"{colour}\"");
            self.text(x + 1.5, y + 9.0 + real_len(number % 3) * 9.0, &style, &(number + 1).to_string());
        }
    }

    fn acts(&mut self, scenario: &Scenario, run: &Run, y: f64) {
        let heading = if run.acts.all.is_empty() { "No actions" } else { "Actions" };
        self.text(LEFT, y, "font-weight=\"bold\"", heading);
        for (number, act) in run.acts.all.iter().take(MOST_LISTED).enumerate() {
            let at = (act.begun - run.record.start).as_secs();
            let judged = if act.judged.is_empty() { String::new() } else { format!(" [{}]", act.judged) };
            let line = format!(
                "{} · {}:{:02} · {} {}{judged}: {}",
                number + 1,
                at / 60,
                at % 60,
                scenario.services[act.service].name,
                what(act),
                act.text
            );
            let style = format!("fill=\"{}\"", colour(act));
            let shown: String = line.chars().take(MOST_LETTERS).collect();
            self.text(LEFT, y + LINE * (real_len(number) + 1.0), &style, &shown);
        }
        if run.acts.all.len() > MOST_LISTED {
            let more = format!("and {} more", run.acts.all.len() - MOST_LISTED);
            self.text(LEFT, y + LINE * (real_len(MOST_LISTED) + 1.0), "fill=\"#444\"", &more);
        }
    }
}

/// What an action was, with its figures.
pub fn what(act: &Act) -> String {
    let node = |node: Option<usize>| node.map_or("elsewhere".to_owned(), |node| format!("node{}", node + 1));
    let how = match act.ended {
        Some((_, End::Undone)) => " (taken back)",
        None => " (not ended)",
        _ => "",
    };
    match act.kind {
        crate::controller::Kind::Out | crate::controller::Kind::In => {
            format!("{} {} to {}{how}", act.kind.word(), act.from, act.to)
        }
        _ => format!("{} {} to {}{how}", act.kind.word(), node(act.source), node(act.target)),
    }
}

fn colour(act: &Act) -> &'static str {
    match act.helped {
        Some(true) => GOOD,
        Some(false) => BAD,
        None => UNKNOWN,
    }
}

/// The top of a scale that has room for all values: 1, 2 or 5 times a power of ten.
fn top(values: impl Iterator<Item = f64>) -> f64 {
    let most = values.fold(0.0_f64, f64::max).max(0.1);
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0].into_iter().map(|it| it * power).find(|it| *it >= most).unwrap_or(most)
}

fn short(value: f64, unit: &str) -> String {
    let text = if value >= 10.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    format!("{text}{unit}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_room() {
        assert_eq!(top([0.3, 3.2].into_iter()), 4.0);
        assert_eq!(top([120.0].into_iter()), 200.0);
        assert_eq!(top(std::iter::empty()), 0.1);
    }

    #[test]
    fn reasons_are_escaped() {
        assert_eq!(escape("a < b & c"), "a &lt; b &amp; c");
    }
}
