//! The key of a message that is a JSON object: one of its members.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Takes member `field` of the JSON object `line` as key: a string counts as its text, anything else as its JSON text.
/// When a name is there twice, the last one counts.
pub(super) fn key_of(line: &[u8], field: &str) -> Result<Bytes, String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let found = Member(field)
        .deserialize(&mut json)
        .and_then(|found| json.end().map(|()| found))
        .map_err(|error| format!("not a JSON object: {error}"))?;
    let Some(raw) = found else {
        return Err(format!("no member `{field}` to take the key from"));
    };
    if !raw.get().starts_with('"') {
        return Ok(Bytes::copy_from_slice(raw.get().as_bytes()));
    }
    let text: Cow<'_, str> =
        serde_json::from_str(raw.get()).map_err(|error| format!("member `{field}`: {error}"))?;
    Ok(Bytes::copy_from_slice(text.as_bytes()))
}

/// Reads one member of an object, skips the others.
struct Member<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<Name<'de>>()? {
            if name.0 == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A member's name, borrowed when it has no escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: &str) -> Result<String, String> {
        key_of(line.as_bytes(), "id").map(|key| String::from_utf8(key.to_vec()).unwrap())
    }

    #[test]
    fn a_string_counts_as_its_text() {
        assert_eq!(key(r#"{"id":"a b"}"#).unwrap(), "a b");
        assert_eq!(key(r#"{"id":"\u00e4\n\"x\""}"#).unwrap(), "ä\n\"x\"");
        assert_eq!(key(r#"{"id":""}"#).unwrap(), "");
    }

    #[test]
    fn anything_else_counts_as_its_json_text() {
        assert_eq!(key(r#"{"id": 1.00}"#).unwrap(), "1.00");
        assert_eq!(
            key(r#"{"id":123456789012345678901234567890}"#).unwrap(),
            "123456789012345678901234567890"
        );
        assert_eq!(key(r#"{"id":null}"#).unwrap(), "null");
        assert_eq!(key(r#"{"id":{"a": [1]}}"#).unwrap(), r#"{"a": [1]}"#);
    }

    #[test]
    fn only_members_of_the_object_itself_count_and_the_last_one_wins() {
        assert!(key(r#"{"x":{"id":1}}"#).unwrap_err().contains("no member `id`"));
        assert_eq!(key(r#"{"id":1,"id":2}"#).unwrap(), "2");
        assert_eq!(key(r#"{"\u0069d":3}"#).unwrap(), "3");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in ["", "1", "[]", "\"id\"", "{", r#"{"id":1} x"#, r#"{"id":1"#] {
            assert!(key(bad).unwrap_err().contains("not a JSON object"), "{bad:?}");
        }
        assert!(key_of(b"\xff", "id").is_err());
    }
}
