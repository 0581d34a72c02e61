//! An error and its causes as one line.

/// The error followed by its causes, each said once: many errors name their cause in their own text already.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open `x`: {source}; check the directory")]
    struct Open {
        source: std::io::Error,
    }

    #[test]
    fn a_cause_that_is_told_already_is_not_told_again() {
        let source = std::io::Error::other("no room");
        let error = anyhow::Error::new(Open { source }).context("start node 1");
        assert_eq!(
            error_text(&error),
            "start node 1: open `x`: no room; check the directory"
        );
    }

    #[test]
    fn a_cause_that_is_not_told_is_added() {
        let error = anyhow::anyhow!("no route").context("ask metadata");
        assert_eq!(error_text(&error), "ask metadata: no route");
    }
}
