//! Names: text from outside, checked once.

use std::fmt;
use std::str::FromStr;

use crate::StationKind;
use crate::limits::MAX_NAME_LEN;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("{what} name is empty; use 1 to {MAX_NAME_LEN} characters")]
    Empty {
        /// Kind of name.
        what: &'static str,
    },
    /// More than the limit.
    #[error("{what} name has {len} characters; use 1 to {MAX_NAME_LEN}")]
    TooLong {
        /// Kind of name.
        what: &'static str,
        /// Characters given.
        len: usize,
    },
    /// A character that names do not have.
    #[error(
        "{what} name has the character {found:?} at place {place}; use letters, digits, `_`, `-` and `.`"
    )]
    BadCharacter {
        /// Kind of name.
        what: &'static str,
        /// The character.
        found: char,
        /// Its place, counted from 1.
        place: usize,
    },
    /// Starts or ends with something other than a letter, digit or `_`.
    #[error("{what} name {which} with {found:?}; start and end with a letter, a digit or `_`")]
    BadEdge {
        /// Kind of name.
        what: &'static str,
        /// `starts` or `ends`.
        which: &'static str,
        /// The character.
        found: char,
    },
}

fn check(text: &str, what: &'static str) -> Result<(), InvalidName> {
    let len = text.chars().count();
    if len > MAX_NAME_LEN {
        return Err(InvalidName::TooLong { what, len });
    }
    let (Some(first), Some(last)) = (text.chars().next(), text.chars().last()) else {
        return Err(InvalidName::Empty { what });
    };
    for (index, found) in text.chars().enumerate() {
        if !(found.is_ascii_alphanumeric() || matches!(found, '_' | '-' | '.')) {
            return Err(InvalidName::BadCharacter {
                what,
                found,
                place: index + 1,
            });
        }
    }
    let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !edge(first) {
        return Err(InvalidName::BadEdge {
            what,
            which: "starts",
            found: first,
        });
    }
    if !edge(last) {
        return Err(InvalidName::BadEdge {
            what,
            which: "ends",
            found: last,
        });
    }
    Ok(())
}

/// A station's name, as it was typed. Names are equal when their texts are; which names mean the same station depends on
/// the kind of the station, see [`StationName::key`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StationName {
    display: Box<str>,
    folded: Box<str>,
}

impl StationName {
    /// What tells it from other stations of its tenant: the name of a station ignores upper and lower case, that of a
    /// stream is kept byte for byte.
    ///
    /// Names in a request come without a kind. They mean the stream of exactly that name, or else the station. Both
    /// never exist together: no station has a name that differs from that of a stream in case only.
    pub fn key(&self, kind: StationKind) -> &str {
        match kind {
            StationKind::Station => &self.folded,
            StationKind::Stream => &self.display,
        }
    }

    /// In lower case: the same for all names that differ in case only.
    pub fn folded(&self) -> &str {
        &self.folded
    }

    /// As it was typed when the station was made.
    pub fn display(&self) -> &str {
        &self.display
    }
}

impl FromStr for StationName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check(text, "station")?;
        Ok(Self {
            display: text.into(),
            folded: text.to_ascii_lowercase().into(),
        })
    }
}

impl fmt::Display for StationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display)
    }
}
impl fmt::Debug for StationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StationName({:?})", self.display)
    }
}

macro_rules! plain_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check(text, $what)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }
    };
}

plain_name!(
    /// A name space of stations and users.
    TenantName, "tenant"
);
plain_name!(
    /// A consumer group's name within its station. Case counts.
    GroupName, "consumer group"
);
plain_name!(
    /// A user's name within its tenant. Case counts.
    UserName, "user"
);
plain_name!(
    /// What an operator calls a process.
    NodeName, "node"
);

impl TenantName {
    /// The tenant that exists from the first start on.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }

    /// The name space of what belongs to no tenant: nodes, counters, the cluster itself.
    pub fn system() -> Self {
        Self("system".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn station_names_ignore_case_and_keep_the_display_form() {
        let name: StationName = "Orders".parse().unwrap();
        let other: StationName = "oRDERS".parse().unwrap();
        assert_eq!(name.key(StationKind::Station), other.key(StationKind::Station));
        assert_eq!((name.folded(), name.display()), ("orders", "Orders"));
    }

    #[test]
    fn stream_names_are_kept_byte_for_byte() {
        let name: StationName = "Str".parse().unwrap();
        let other: StationName = "str".parse().unwrap();
        assert_eq!(name.key(StationKind::Stream), "Str");
        assert_ne!(name.key(StationKind::Stream), other.key(StationKind::Stream));
    }

    #[test]
    fn names_of_0_and_129_characters_are_refused_and_128_pass() {
        assert_eq!(
            "".parse::<StationName>(),
            Err(InvalidName::Empty { what: "station" })
        );
        assert_eq!(
            "a".repeat(129).parse::<StationName>(),
            Err(InvalidName::TooLong {
                what: "station",
                len: 129
            })
        );
        assert!("a".repeat(128).parse::<StationName>().is_ok());
    }

    #[test]
    fn paths_and_wildcards_are_refused() {
        for bad in [
            "../x", "a/b", "a b", "a*", "a>", "ä", ".a", "a.", "-a", "a\n", "a\0",
        ] {
            assert!(bad.parse::<GroupName>().is_err(), "{bad:?} must be refused");
        }
    }
}
