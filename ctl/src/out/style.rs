//! Colour and width. Colour only repeats what a word says already.

use std::{collections::BTreeMap, io::IsTerminal as _};

use clap::ValueEnum;

/// Whether to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set; elsewhere where CLICOLOR_FORCE is.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a piece of text is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing in particular.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warn,
    /// Wrong.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Head,
}

/// What the output can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// With colour.
    pub colour: bool,
    /// Somebody watches.
    pub terminal: bool,
    /// More than ASCII.
    pub unicode: bool,
}

impl Style {
    /// Of the standard output.
    pub fn of_stdout(wish: Colour, env: &BTreeMap<String, String>) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let set = |name: &str| env.get(name).is_some_and(|value| !value.is_empty());
        let forced = set("CLICOLOR_FORCE") && env.get("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let dumb = env.get("TERM").is_some_and(|term| term == "dumb");
        let colour = match wish {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => !set("NO_COLOR") && (forced || (terminal && !dumb)),
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| env.get(*name).filter(|value| !value.is_empty()));
        let unicode = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        Self { colour, terminal, unicode }
    }

    /// Text in its tone.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.into(),
            _ if !self.colour => return text.into(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31;1",
            Tone::Dim => "2",
            Tone::Head => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Without what could steer a terminal: names and texts come from elsewhere.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_asked_for_refused_and_never_alone() {
        let style = |wish, env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            Style::of_stdout(wish, &env).colour
        };
        // Tests have no terminal.
        assert!(!style(Colour::Auto, &[]) && style(Colour::Auto, &[("CLICOLOR_FORCE", "1")]));
        assert!(!style(Colour::Auto, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(style(Colour::Always, &[("NO_COLOR", "1")]));
        let on = Style { colour: true, terminal: true, unicode: true };
        assert_eq!(on.paint(Tone::Bad, "short cpu"), "\x1b[31;1mshort cpu\x1b[0m");
        assert_eq!(clean("a\x1b[2Jb\n"), "a [2Jb ");
    }
}
