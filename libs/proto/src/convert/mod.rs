//! Conversions between generated types and the domain's: `From` outward, which cannot fail, and `TryFrom` inward,
//! which can. A missing or impossible field is the peer's fault and is answered, never fatal.

mod common;
mod record;

use ptah_types::{Boundary, ErrorKind, InvalidId, InvalidName};

/// A message from outside that does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConversionError {
    /// A field that must be set is not.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field has a value that it cannot have.
    #[error("field `{field}` is invalid: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A name breaks the rules of names.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An id is not one.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

impl ConversionError {
    /// A field that must be set is not.
    pub const fn missing(field: &'static str) -> Self {
        Self::Missing(field)
    }

    /// A field has a value that it cannot have.
    pub fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            why: why.into(),
        }
    }
}

impl Boundary for ConversionError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}
