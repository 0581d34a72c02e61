//! How a command ends when it does not end well: one line for a person, one number for a script.

use ptah_types::ErrorKind;

/// What a script sees. The numbers are part of the command's interface and never change their meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// All is done.
    Success,
    /// Failed for a reason that has no number of its own.
    Failed,
    /// The arguments or what they name are wrong; the same call fails again.
    Usage,
    /// The server is not reachable or cannot do it now; nothing happened; try again.
    Unavailable,
    /// The named thing does not exist.
    NotFound,
    /// A thing of that name exists and differs.
    Exists,
    /// No or wrong credentials, or not allowed.
    Denied,
    /// Some messages were refused, or a verification found a difference.
    Partial,
    /// It may or may not have happened.
    OutcomeUnknown,
    /// `ptah up` cannot start here: a port, a directory or what lies in it.
    CannotStart,
    /// A second signal ended it at once.
    Interrupted,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unavailable => 3,
            Self::NotFound => 4,
            Self::Exists => 5,
            Self::Denied => 6,
            Self::Partial => 7,
            Self::OutcomeUnknown => 8,
            Self::CannotStart => 9,
            Self::Interrupted => 130,
        }
    }

    const fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument | ErrorKind::TooLarge => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::AlreadyExists => Self::Exists,
            ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::NotLeader
            | ErrorKind::Exhausted
            | ErrorKind::Unavailable
            | ErrorKind::DeadlineExceeded => Self::Unavailable,
            ErrorKind::OutcomeUnknown => Self::OutcomeUnknown,
            ErrorKind::Conflict | ErrorKind::Incompatible | ErrorKind::DataDamaged | ErrorKind::Internal => {
                Self::Failed
            }
        }
    }
}

/// Why a command ends without having done everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    kind: ErrorKind,
    message: Option<String>,
}

impl Failure {
    /// A failure of a kind that clients know.
    pub fn of_kind(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            exit: Exit::of(kind),
            kind,
            message: Some(message.into()),
        }
    }

    /// Wrong arguments.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::of_kind(ErrorKind::InvalidArgument, message)
    }

    /// Failed for another reason.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::of_kind(ErrorKind::Internal, message)
    }

    /// Some messages did not make it, for reasons of which `kind` is the worst.
    pub fn partial(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Partial,
            ..Self::of_kind(kind, message)
        }
    }

    /// The cluster cannot start here.
    pub fn cannot_start(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::CannotStart,
            kind: ErrorKind::Conflict,
            message: Some(message.into()),
        }
    }

    /// A second signal: ends at once, without finishing anything.
    pub fn interrupted(signal: &str) -> Self {
        Self {
            exit: Exit::Interrupted,
            ..Self::failed(format!(
                "second signal ({signal}), ended at once; unfinished work is recovered at the next start"
            ))
        }
    }

    /// Nobody reads the output any more. That is the reader's choice: no message and no failure.
    pub const fn reader_gone() -> Self {
        Self {
            exit: Exit::Success,
            kind: ErrorKind::Conflict,
            message: None,
        }
    }

    /// Exit code.
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// Kind, for machines.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// One line for a person; `None` when there is nothing to say.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

impl From<crate::client::ClientError> for Failure {
    fn from(error: crate::client::ClientError) -> Self {
        Self::of_kind(error.kind, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_ends_with_a_code_that_is_not_success() {
        for kind in ErrorKind::ALL {
            assert_ne!(Failure::of_kind(kind, "x").exit().code(), 0, "{kind}");
        }
    }

    #[test]
    fn an_unknown_outcome_has_a_code_of_its_own() {
        let unknown = ErrorKind::ALL
            .into_iter()
            .filter(|kind| Exit::of(*kind) == Exit::OutcomeUnknown);
        assert_eq!(unknown.collect::<Vec<_>>(), [ErrorKind::OutcomeUnknown]);
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let gone = Failure::reader_gone();
        assert_eq!((gone.exit().code(), gone.message()), (0, None));
    }
}
