//! Wire protocol versions: said with every internal call, agreed on once per stream.

use ptah_proto::common::v1 as pb;
use ptah_types::{ErrorKind, VersionRange, WIRE_PROTOCOL};

use crate::RpcError;

/// Metadata key under which a caller says its versions, as `1-1`.
pub(crate) const WIRE_HEADER: &str = "ptah-wire";

/// The versions that this build speaks, for the greeting of a stream.
pub fn wire_range() -> pb::VersionRange {
    pb::VersionRange {
        min: WIRE_PROTOCOL.min,
        max: WIRE_PROTOCOL.max,
    }
}

/// The version of a stream, from the versions in the caller's greeting.
pub fn agree_wire(theirs: Option<pb::VersionRange>) -> Result<u32, RpcError> {
    let theirs = theirs.map(|range| VersionRange {
        min: range.min,
        max: range.max,
    });
    agree(theirs)
}

/// The version of a call, from its header.
pub(crate) fn agree_header(header: Option<&[u8]>) -> Result<u32, RpcError> {
    let Some(header) = header else {
        return agree(None);
    };
    let parsed = std::str::from_utf8(header).ok().and_then(parse);
    match parsed {
        Some(theirs) => agree(Some(theirs)),
        None => {
            let text = String::from_utf8_lossy(header);
            let message = format!("header `{WIRE_HEADER}` is {text:?}; write versions as `1-2`");
            Err(RpcError::new(ErrorKind::InvalidArgument, message))
        }
    }
}

fn parse(text: &str) -> Option<VersionRange> {
    let (min, max) = text.split_once('-')?;
    let range = VersionRange {
        min: min.parse().ok()?,
        max: max.parse().ok()?,
    };
    (range.min <= range.max).then_some(range)
}

fn agree(theirs: Option<VersionRange>) -> Result<u32, RpcError> {
    let incompatible = |message| Err(RpcError::new(ErrorKind::Incompatible, message));
    let Some(theirs) = theirs else {
        return incompatible(format!(
            "the caller does not say its wire protocol versions; this process speaks {WIRE_PROTOCOL}, \
             upgrade the caller"
        ));
    };
    match WIRE_PROTOCOL.agree(theirs) {
        Some(version) => Ok(version),
        None => {
            let older = if theirs.max < WIRE_PROTOCOL.min {
                "the caller"
            } else {
                "this process"
            };
            let name = env!("CARGO_PKG_VERSION");
            incompatible(format!(
                "the caller speaks wire protocol {theirs} and this process (ptah {name}) {WIRE_PROTOCOL}; upgrade {older}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_this_build_agrees_with_itself() {
        assert_eq!(agree_wire(Some(wire_range())).unwrap(), WIRE_PROTOCOL.max);
        assert_eq!(
            agree_header(Some(WIRE_PROTOCOL.to_string().as_bytes())).unwrap(),
            WIRE_PROTOCOL.max
        );
    }

    #[test]
    fn other_versions_are_refused_in_one_sentence() {
        for (theirs, older) in [("7-9", "this process"), ("0-0", "the caller")] {
            let refused = agree_header(Some(theirs.as_bytes())).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Incompatible);
            let version = env!("CARGO_PKG_VERSION");
            let expected = format!(
                "the caller speaks wire protocol {theirs} and this process (ptah {version}) 1-1; upgrade {older}"
            );
            assert_eq!(refused.message, expected);
        }
    }

    #[test]
    fn nonsense_and_silence_are_refused() {
        for header in [&b"1"[..], b"2-1", b"a-b", b"\xff", b""] {
            assert_eq!(
                agree_header(Some(header)).unwrap_err().kind,
                ErrorKind::InvalidArgument
            );
        }
        assert_eq!(agree_header(None).unwrap_err().kind, ErrorKind::Incompatible);
        assert_eq!(agree_wire(None).unwrap_err().kind, ErrorKind::Incompatible);
    }
}
