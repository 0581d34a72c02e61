//! What went wrong, in the words of the server if it said something.

use ptah_rpc::RpcError;
use ptah_types::ErrorKind;

use super::ServerAddress;

/// Trailer that the server's own errors carry. A status without it was made on the way.
const ERROR_TRAILER: &str = "ptah-error-bin";

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ClientError {
    /// What kind of failure, and with it whether to retry and whether something can have happened.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
    /// The connection did not carry the call to its end, so a new connection may.
    pub is_connection_lost: bool,
}

/// Whether a call changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Only looks.
    Read,
    /// May have an effect that the caller cannot see when the answer is lost.
    Write,
}

impl ClientError {
    /// An error of a kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            is_connection_lost: false,
        }
    }

    /// Nobody listens there.
    pub(super) fn unreachable(server: &ServerAddress, why: &str) -> Self {
        let message = format!("server not reachable at {server}: {why}; is `ptah up` running?");
        Self {
            is_connection_lost: true,
            ..Self::new(ErrorKind::Unavailable, message)
        }
    }

    /// No answer in time.
    pub(super) fn timeout(server: &ServerAddress, seconds: f64, effect: Effect) -> Self {
        match effect {
            Effect::Read => Self::new(
                ErrorKind::DeadlineExceeded,
                format!("no answer from {server} within {seconds} s; try again, or with a longer --timeout"),
            ),
            Effect::Write => Self::new(
                ErrorKind::OutcomeUnknown,
                format!(
                    "no answer from {server} within {seconds} s; it may or may not have happened: look before you repeat it"
                ),
            ),
        }
    }

    /// The stream ended although it should not have.
    pub(super) fn ended(server: &ServerAddress) -> Self {
        let message = format!("connection to {server} lost: the server ended the stream");
        Self {
            is_connection_lost: true,
            ..Self::new(ErrorKind::Unavailable, message)
        }
    }

    /// The server does not keep to the contract.
    pub(super) fn protocol(server: &ServerAddress, what: &str) -> Self {
        Self::new(
            ErrorKind::Incompatible,
            format!("{server} answers against the protocol: {what}; use the same version on both sides"),
        )
    }

    /// From a gRPC status.
    pub(super) fn from_status(server: &ServerAddress, status: tonic::Status, effect: Effect) -> Self {
        let is_from_server = status.metadata().get_bin(ERROR_TRAILER).is_some();
        let text = status.message().to_owned();
        let is_cut = matches!(
            status.code(),
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Internal | tonic::Code::Cancelled
        );
        let error = match effect {
            Effect::Read => RpcError::of_read(status),
            Effect::Write => RpcError::from(status),
        };
        if is_from_server || !is_cut {
            return Self::new(error.kind, error.message);
        }
        let hint = match effect {
            Effect::Read => "try again",
            Effect::Write => "it may or may not have happened: look before you repeat it",
        };
        let kind = match effect {
            Effect::Read => ErrorKind::Unavailable,
            Effect::Write => ErrorKind::OutcomeUnknown,
        };
        let message = format!("connection to {server} lost: {text}; {hint}");
        Self {
            is_connection_lost: true,
            ..Self::new(kind, message)
        }
    }

    /// From an error inside an answer.
    pub(super) fn from_proto(error: ptah_proto::common::v1::Error) -> Self {
        let error = RpcError::from_proto(error);
        Self::new(error.kind, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerAddress {
        "127.0.0.1:5555".parse().unwrap()
    }

    #[test]
    fn a_lost_connection_during_a_write_is_an_unknown_outcome() {
        let status = || tonic::Status::unavailable("broken pipe");
        let write = ClientError::from_status(&server(), status(), Effect::Write);
        let read = ClientError::from_status(&server(), status(), Effect::Read);
        assert_eq!(
            (write.kind, write.is_connection_lost),
            (ErrorKind::OutcomeUnknown, true)
        );
        assert_eq!(
            (read.kind, read.is_connection_lost),
            (ErrorKind::Unavailable, true)
        );
    }

    #[test]
    fn what_the_server_says_is_passed_on_as_it_is() {
        let told = RpcError::new(ErrorKind::NotFound, "station `orders` not found");
        let error = ClientError::from_status(&server(), told.into(), Effect::Write);
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::NotFound, "station `orders` not found")
        );
        assert!(!error.is_connection_lost);
    }

    #[test]
    fn an_unreachable_server_is_named_with_the_next_thing_to_do() {
        let error = ClientError::unreachable(&server(), "connection refused");
        assert_eq!(
            error.message,
            "server not reachable at 127.0.0.1:5555: connection refused; is `ptah up` running?"
        );
    }
}
