//! Errors between processes: kind, text, and where to go instead.
//!
//! On the wire an [`RpcError`] is a gRPC status with the trailer `ptah-error-bin`, so that every kind survives the
//! round trip. A status without the trailer comes from the transport or from a foreign server; it is read with
//! care: what may have had an effect is [`ErrorKind::OutcomeUnknown`].

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use ptah_proto::common::v1 as pb;
use ptah_types::{Boundary, ErrorKind, NodeId};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, ConnectError, Status};

use crate::convert::{kind_from_proto, kind_to_proto};

/// Trailer that carries the whole error.
const ERROR_TRAILER: &str = "ptah-error-bin";
/// Longest message that is sent, in bytes: with its copy in the trailer it has to fit into a header list.
const MAX_MESSAGE_BYTES: usize = 2 << 10;

/// A call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// Kind: says whether to retry and whether something can have happened.
    pub kind: ErrorKind,
    /// One sentence for a person.
    pub message: String,
    /// Where to go instead, when another node leads.
    pub leader: Option<(NodeId, String)>,
    /// Earliest useful retry, if known.
    pub retry_after: Option<Duration>,
}

impl RpcError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            leader: None,
            retry_after: None,
        }
    }

    /// The error as it is told beyond the service.
    pub fn of(error: &(impl Boundary + ?Sized)) -> Self {
        Self::new(error.kind(), error.to_string())
    }

    /// With the node that leads.
    #[must_use]
    pub fn with_leader(mut self, node: NodeId, address: impl Into<String>) -> Self {
        self.leader = Some((node, address.into()));
        self
    }

    /// With the earliest useful retry.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Reads the status of a call that changes nothing: what would be unknown otherwise did not happen.
    pub fn of_read(status: Status) -> Self {
        let late = matches!(status.code(), Code::DeadlineExceeded) || is_timeout(&status);
        let mut error = Self::from(status);
        if error.kind == ErrorKind::OutcomeUnknown {
            error.kind = if late {
                ErrorKind::DeadlineExceeded
            } else {
                ErrorKind::Unavailable
            };
        }
        error
    }

    /// The error as a message.
    pub fn to_proto(&self) -> pb::Error {
        let leader = self.leader.as_ref().map(|(node, address)| pb::NodeAddress {
            node_id: node.get(),
            address: address.clone(),
        });
        let retry_after = self.retry_after.unwrap_or_default().as_millis();
        pb::Error {
            kind: kind_to_proto(self.kind).into(),
            message: self.message.clone(),
            leader,
            retry_after_ms: u32::try_from(retry_after).unwrap_or(u32::MAX),
        }
    }

    /// Reads a message; a kind that this build does not know is a defect to it.
    pub fn from_proto(error: pb::Error) -> Self {
        let leader = error
            .leader
            .and_then(|leader| Some((NodeId::new(leader.node_id).ok()?, leader.address)));
        let millis = u64::from(error.retry_after_ms);
        Self {
            kind: kind_from_proto(error.kind),
            message: error.message,
            leader,
            retry_after: (millis > 0).then(|| Duration::from_millis(millis)),
        }
    }

    /// The status with another code than the table's, for the few places where gRPC has a more exact one.
    pub(crate) fn into_status_with_code(mut self, code: Code) -> Status {
        truncate(&mut self.message, MAX_MESSAGE_BYTES);
        let detail = MetadataValue::from_bytes(&self.to_proto().encode_to_vec());
        let mut trailers = MetadataMap::with_capacity(1);
        trailers.insert_bin(ERROR_TRAILER, detail);
        Status::with_details_and_metadata(code, self.message, Bytes::new(), trailers)
    }
}

impl Boundary for RpcError {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// The gRPC code of a kind. The one table.
pub const fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::TooLarge => Code::OutOfRange,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        // A foreign client that knows no hints retries `UNAVAILABLE`, which is right for both.
        ErrorKind::NotLeader | ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        // Foreign clients do not retry it by themselves.
        ErrorKind::OutcomeUnknown => Code::Unknown,
        ErrorKind::Incompatible => Code::FailedPrecondition,
        ErrorKind::DataDamaged => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

/// What a code says when nothing else does. Codes that a broken connection also gives are unknown outcomes.
const fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::OutOfRange => ErrorKind::TooLarge,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::Aborted | Code::FailedPrecondition => ErrorKind::Conflict,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::ResourceExhausted => ErrorKind::Exhausted,
        Code::Unimplemented => ErrorKind::Incompatible,
        Code::DataLoss => ErrorKind::DataDamaged,
        Code::Internal
        | Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unavailable => ErrorKind::OutcomeUnknown,
    }
}

/// The status that tells `error` beyond the service.
pub fn to_status(error: &(impl Boundary + ?Sized)) -> Status {
    RpcError::of(error).into()
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        let code = code_of(error.kind);
        error.into_status_with_code(code)
    }
}

impl From<Status> for RpcError {
    fn from(status: Status) -> Self {
        let detail = status.metadata().get_bin(ERROR_TRAILER);
        let told = detail
            .and_then(|detail| detail.to_bytes().ok())
            .and_then(|bytes| pb::Error::decode(bytes).ok());
        if let Some(told) = told {
            return Self::from_proto(told);
        }
        if never_connected(&status) {
            let message = format!("no connection: {}", status.message());
            return Self::new(ErrorKind::Unavailable, message);
        }
        let message = match status.message() {
            "" => format!("call ended with status {:?}", status.code()),
            text => text.to_owned(),
        };
        Self::new(kind_of(status.code()), message)
    }
}

/// Whether the call failed before there was a connection to send it on: the one transport failure that is certain
/// to have had no effect.
fn never_connected(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<ConnectError>())
}

fn is_timeout(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::TimeoutExpired>())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| {
        (*cause).source()
    })
}

/// Cuts `text` at a character boundary so that it has at most `limit` bytes.
fn truncate(text: &mut String, limit: usize) {
    if text.len() > limit {
        let end = (0..=limit)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests;
