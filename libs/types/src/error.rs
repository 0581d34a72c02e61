//! What an error means to a caller: a closed set, mapped once at each edge.

use std::fmt;

/// Kind of a failure as every door tells it.
///
/// Each kind answers two questions: may the call be retried as it is, and can it have had an effect?
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ErrorKind {
    /// The request itself is wrong; repeating it gives the same answer.
    InvalidArgument,
    /// More bytes or items than allowed.
    TooLarge,
    /// The named thing does not exist.
    NotFound,
    /// A thing of that name exists and differs.
    AlreadyExists,
    /// The thing changed since the caller looked, or is in a state that forbids the call.
    Conflict,
    /// No or wrong credentials.
    Unauthenticated,
    /// Known, but not allowed.
    PermissionDenied,
    /// Another node leads; follow the hint. Not a failure.
    NotLeader,
    /// A limit is reached for now: memory, disk, queue or rate.
    Exhausted,
    /// A needed part does not answer; nothing happened.
    Unavailable,
    /// The time given is over; nothing happened.
    DeadlineExceeded,
    /// It may or may not have happened.
    OutcomeUnknown,
    /// Peers do not understand each other's version, cluster or secret.
    Incompatible,
    /// Stored data is damaged; it is never served.
    DataDamaged,
    /// A defect of Ptah.
    Internal,
}

/// Whether a failed call can have changed something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing changed.
    None,
    /// It may or may not have happened.
    Unknown,
}

impl ErrorKind {
    /// All kinds, for tables and tests.
    pub const ALL: [Self; 15] = [
        Self::InvalidArgument,
        Self::TooLarge,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotLeader,
        Self::Exhausted,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::OutcomeUnknown,
        Self::Incompatible,
        Self::DataDamaged,
        Self::Internal,
    ];

    /// Whether the same call may succeed later.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::NotLeader
                | Self::Exhausted
                | Self::Unavailable
                | Self::DeadlineExceeded
                | Self::OutcomeUnknown
        )
    }

    /// Whether the failed call can have changed something.
    pub const fn effect(self) -> Effect {
        match self {
            Self::OutcomeUnknown | Self::Internal => Effect::Unknown,
            _ => Effect::None,
        }
    }

    /// Stable machine-readable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::TooLarge => "too_large",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotLeader => "not_leader",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Incompatible => "incompatible",
            Self::DataDamaged => "data_damaged",
            Self::Internal => "internal",
        }
    }

    /// Reads [`ErrorKind::code`] back.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// An error that knows its kind at the service boundary.
pub trait Boundary: std::error::Error {
    /// The kind that doors tell.
    fn kind(&self) -> ErrorKind;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_back_and_unique() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), Some(kind));
        }
    }

    #[test]
    fn an_unknown_outcome_is_never_told_as_no_effect() {
        assert_eq!(ErrorKind::OutcomeUnknown.effect(), Effect::Unknown);
        assert_eq!(ErrorKind::DeadlineExceeded.effect(), Effect::None);
    }
}
