//! Where people are told, and what: one TOML, read from a Docker secret, because addresses of chats let anybody write there.
//! Nothing here is ever logged or shown but the channels' names and kinds.

use std::{collections::BTreeSet, fmt, path::Path};

use serde::Deserialize;
use swarmguard_common::{api::Severity, journal::Kind};

/// Most channels.
const MAX_CHANNELS: usize = 32;
/// Longest file.
const MAX_BYTES: u64 = 256 * 1024;

/// Everything that the file says.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// In the order of the file.
    #[serde(default, rename = "channel")]
    pub channels: Vec<Channel>,
}

/// One receiver. Of `kinds`, `codes`, `services`, `severity` and `quiet` everything that is set must hold.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// Its name, also in labels, the API and metrics.
    pub name: String,
    /// What it is.
    #[serde(rename = "kind")]
    pub receiver: ReceiverKind,
    /// Where messages are posted; of all but `smtp`.
    #[serde(default)]
    url: Option<String>,
    /// `webhook`: key of the HMAC in the header `X-SwarmGuard-Signature`.
    #[serde(default)]
    pub secret: Option<String>,
    /// `ntfy`: access token.
    #[serde(default)]
    pub token: Option<String>,
    /// `smtp`: host name of the mail server.
    #[serde(default)]
    pub server: Option<String>,
    /// `smtp`: its port; 465 with `tls = "tls"`, else 587.
    #[serde(default)]
    pub port: Option<u16>,
    /// `smtp`: how it is encrypted; it always is.
    #[serde(default)]
    pub tls: MailTls,
    /// `smtp`: who logs in.
    #[serde(default)]
    pub user: Option<String>,
    /// `smtp`: with what.
    #[serde(default)]
    pub password: Option<String>,
    /// `smtp`: sender.
    #[serde(default)]
    pub from: Option<String>,
    /// `smtp`: receivers.
    #[serde(default)]
    pub to: Vec<String>,
    /// Further authorities whose certificates are believed, as PEM.
    #[serde(default)]
    pub ca: Option<String>,
    /// Only these kinds of journal entries.
    #[serde(default)]
    pub kinds: Vec<Kind>,
    /// Only these codes; they are told however little they matter.
    #[serde(default)]
    pub codes: BTreeSet<String>,
    /// Only services whose name matches one of these; `*` stands for anything.
    #[serde(default)]
    pub services: Vec<String>,
    /// What matters less is not told.
    #[serde(default = "warning")]
    pub severity: Severity,
    /// `22:00-07:00` in UTC: only what is critical is told then.
    #[serde(default)]
    pub quiet: Option<Quiet>,
}

fn warning() -> Severity {
    Severity::Warning
}

/// Minutes of the day between which it is to be quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Quiet {
    from: u32,
    until: u32,
}

impl Quiet {
    /// Whether a minute of the day lies within; the end does not.
    pub fn holds(self, minute: u32) -> bool {
        if self.from <= self.until {
            (self.from..self.until).contains(&minute)
        } else {
            minute >= self.from || minute < self.until
        }
    }
}

impl TryFrom<String> for Quiet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let minute = |text: &str| -> Option<u32> {
            let (hour, minute) = text.trim().split_once(':')?;
            let (hour, minute) = (hour.parse::<u32>().ok()?, minute.parse::<u32>().ok()?);
            (hour < 24 && minute < 60).then_some(hour * 60 + minute)
        };
        let (from, until) = text.split_once('-').unwrap_or((&text, ""));
        match (minute(from), minute(until)) {
            (Some(from), Some(until)) if from != until => Ok(Self { from, until }),
            _ => Err(format!("quiet = {text:?}: two times of the day in UTC, for instance 22:00-07:00")),
        }
    }
}

/// Kinds of receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiverKind {
    /// The entries themselves as JSON, signed.
    Webhook,
    /// An incoming webhook of Slack, Mattermost or Rocket.Chat.
    Slack,
    /// A workflow of Microsoft Teams.
    Teams,
    /// A topic of ntfy.
    Ntfy,
    /// An Apprise API server.
    Apprise,
    /// Mail.
    Smtp,
}

impl ReceiverKind {
    /// As the file says it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Teams => "teams",
            Self::Ntfy => "ntfy",
            Self::Apprise => "apprise",
            Self::Smtp => "smtp",
        }
    }
}

/// How mail is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// Plain at first, then TLS; a server that does not offer it is sent nothing.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
}

/// Why the file is not used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is too long, no TOML, or has unknown keys or values; what it says is not repeated, for it is secret.
    #[error("{0}")]
    Wrong(String),
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first thing that makes no sense, with the channel that it is in.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let read = || -> std::io::Result<String> {
            if std::fs::metadata(path)?.len() > MAX_BYTES {
                return Err(std::io::Error::other("it is larger than 256 KiB"));
            }
            std::fs::read_to_string(path)
        };
        let text =
            read().map_err(|source| SettingsError::Read { path: path.display().to_string(), source })?;
        Self::parse(&text)
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(text).map_err(|error| {
            // The error's own text shows the line, and that may be a password.
            let line =
                error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
            SettingsError::Wrong(format!("line {line}: {}", error.message()))
        })?;
        settings.check().map_err(SettingsError::Wrong)?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        if self.channels.len() > MAX_CHANNELS {
            return Err(format!("{} channels: at most {MAX_CHANNELS}", self.channels.len()));
        }
        let mut names = BTreeSet::new();
        for channel in &self.channels {
            let name = &channel.name;
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
                return Err(format!("name {name:?}: 1 to 40 letters, digits, hyphens, dots or underscores"));
            }
            if !names.insert(name) {
                return Err(format!("two channels are called {name:?}"));
            }
            channel.check().map_err(|why| format!("channel {name:?}: {why}"))?;
        }
        Ok(())
    }
}

impl Channel {
    fn check(&self) -> Result<(), String> {
        if self.receiver == ReceiverKind::Smtp {
            if self.server.is_none() || self.from.is_none() || self.to.is_empty() {
                return Err("smtp needs server, from and to".into());
            }
            if self.user.is_some() != self.password.is_some() {
                return Err("user and password go together".into());
            }
            super::mail::check(self)?;
        } else {
            self.target()?;
        }
        super::tls::roots(self.ca.as_deref())?;
        Ok(())
    }

    /// Where it posts.
    ///
    /// # Errors
    /// Where the URL is none; it is not repeated.
    pub fn target(&self) -> Result<http::Uri, String> {
        let text = self.url.as_deref().ok_or("a url is needed")?;
        let uri: http::Uri = text.parse().map_err(|_| "its url must be https://… or http://…")?;
        let web = matches!(uri.scheme_str(), Some("http" | "https"));
        if !web || uri.host().is_none_or(str::is_empty) {
            return Err("its url must be https://… or http://…".into());
        }
        Ok(uri)
    }
}

/// Names and kinds only: the rest is secret.
impl fmt::Debug for Channel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.name, self.receiver.word())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(&self.channels).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_every_kind_of_receiver_is_read() {
        let settings = Settings::parse(
            r#"
            [[channel]]
            name = "hook"
            kind = "webhook"
            url = "https://example.com/x?y=z"
            secret = "k"
            kinds = ["action"]
            [[channel]]
            name = "chat"
            kind = "slack"
            url = "http://chat:8065/hooks/abc"
            quiet = "22:00-07:00"
            services = ["shop_*"]
            [[channel]]
            name = "mail"
            kind = "smtp"
            server = "mail.example.com"
            from = "SwarmGuard <guard@example.com>"
            to = ["ops@example.com"]
            severity = "critical"
            "#,
        )
        .expect("sensible");
        assert_eq!(settings.channels.len(), 3);
        assert_eq!(settings.channels[0].kinds, [Kind::Action]);
        let quiet = settings.channels[1].quiet.expect("set");
        assert!(quiet.holds(23 * 60) && quiet.holds(0) && !quiet.holds(7 * 60) && !quiet.holds(12 * 60));
        assert_eq!(settings.channels[2].severity, Severity::Critical);
        let shown = format!("{settings:?}");
        assert!(!shown.contains("example.com") && !shown.contains("hooks"), "{shown}");
    }

    #[test]
    fn what_makes_no_sense_is_named_and_no_secret_is_repeated() {
        let channel = |rest: &str| format!("[[channel]]\nname = \"a\"\n{rest}");
        for (text, said) in [
            (channel("kind = \"slack\"\nurl = \"hooks.slack.com/SECRET\""), "channel \"a\": its url must be"),
            (channel("kind = \"slack\"\nurl = \"ht!tp://SECRET\""), "channel \"a\": its url must be"),
            (channel("kind = \"slack\""), "channel \"a\": a url is needed"),
            (channel("kind = \"pigeon\"\nurl = \"https://SECRET\""), "pigeon"),
            (channel("kind = \"slack\"\nurl = \"https://h/SECRET\"\nquiet = \"25:00-1\""), "quiet = "),
            (channel("kind = \"slack\"\nurl = \"https://h/SECRET\"\nseverity = \"loud\""), "loud"),
            (channel("kind = \"smtp\"\nserver = \"m\""), "channel \"a\": smtp needs server, from and to"),
            (
                channel("kind = \"smtp\"\nserver = \"m\"\nfrom = \"nobody\"\nto = [\"b@c\"]"),
                "channel \"a\": from: ",
            ),
            (channel("kind = \"slack\"\nurl = \"https://h/\"\nca = \"no pem\""), "channel \"a\": ca: "),
            (channel("kind = \"slack\"\nurl = \"https://h/\"\nname = \"b\""), "line 4"),
        ] {
            let error = Settings::parse(&text).expect_err(&text).to_string();
            assert!(error.contains(said) && !error.contains("SECRET"), "{text}: {error}");
        }
        let twice = channel("kind = \"slack\"\nurl = \"https://h/\"\n").repeat(2);
        assert!(Settings::parse(&twice).expect_err("twice").to_string().contains("two channels"));
    }
}
