//! What a long command is doing: a spinner on a terminal, plain lines with times elsewhere.

use std::fmt::Display;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock::Stopwatch;

/// The steps of one command.
pub struct Progress {
    bar: ProgressBar,
    watch: Stopwatch,
}

impl Progress {
    /// Starts counting; `what` is the command's name.
    pub fn start(what: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, watch: Stopwatch::start() }
    }

    /// Says what is being waited for; replaced by the next one.
    pub fn doing(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
    }

    /// Leaves a line behind, with the time since the start.
    pub fn done(&self, what: impl Display) {
        let line = format!("[{:6.1} s] {what}", self.watch.elapsed().as_secs_f64());
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Time since the start.
    pub fn watch(&self) -> Stopwatch {
        self.watch
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
