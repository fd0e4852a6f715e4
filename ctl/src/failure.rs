//! How a command ends: the exit code, and what is said where it failed. Scripts rely on the codes, people on the words.

use std::fmt;

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// A flag, a name or a value is wrong.
    Usage = 2,
    /// The engine or the coordinator cannot be reached, or does not allow it.
    Unreachable = 3,
    /// A rule refuses it; nothing was changed.
    Refused = 4,
    /// It was begun and taken back.
    Undone = 5,
    /// It goes on, but was waited for long enough.
    TimedOut = 6,
    /// A check failed, or the health is below the mark.
    BelowMark = 7,
    /// The user stopped waiting (Ctrl-C); it goes on.
    Detached = 130,
}

/// Why a command did not do what it should.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, to what.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What a refusal would need to be none, as the rule words it.
    pub needs: Option<String>,
    /// The rule or the error's stable word, where there is one.
    pub code: Option<String>,
}

/// What most functions here answer.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// With an exit code and what happened.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), hint: None, needs: None, code: None }
    }

    /// Something failed.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Exit::Failed, what)
    }

    /// A flag, a name or a value is wrong.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// The engine or the coordinator cannot be reached, or does not allow it.
    pub fn unreachable(what: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, what)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what a refusal would need to be none.
    #[must_use]
    pub fn needs(mut self, needs: impl Into<String>) -> Self {
        self.needs = Some(needs.into());
        self
    }

    /// Adds the stable word.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Says in front what was attempted.
    #[must_use]
    pub fn context(mut self, doing: &str) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        Ok(())
    }
}
