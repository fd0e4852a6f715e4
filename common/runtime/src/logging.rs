//! Where log lines go: to the standard error, filtered, as text or JSON. Alike in all programs.

use tracing_subscriber::EnvFilter;

/// A filter that is none.
#[derive(Debug, thiserror::Error)]
#[error("--log {filter:?}: a level or target=level list is allowed: {source}")]
pub struct LogError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Begins to log. Call once, before anything else has something to say.
///
/// # Errors
/// When the filter makes no sense.
pub fn to_stderr(filter: &str, json: bool) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter).map_err(|source| LogError { filter: filter.into(), source })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // A line that cannot be written is lost. Saying so where nothing can be written either, on a full disk or a
        // broken pipe, would be a panic.
        .log_internal_errors(false);
    if json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_makes_no_sense_is_named() {
        let error = to_stderr("no=such=level", false).expect_err("refused").to_string();
        assert!(error.contains("--log") && error.contains("no=such=level"), "{error}");
    }
}
