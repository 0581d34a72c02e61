//! The keys of settings and the types of their values, learnt from the defaults.

use std::collections::BTreeMap;

use config::{Value, ValueKind};
use serde_json::Value as Json;

use super::Settings;

/// A key, with its section as `cluster.secret`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub name: String,
    /// What its value is.
    pub kind: Kind,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// Several texts.
    List,
    /// It has no default to learn from.
    Open,
}

impl Kind {
    fn expected(self) -> &'static str {
        match self {
            Self::Text => "text in quotes",
            Self::Number => "a whole number",
            Self::Switch => "`true` or `false`",
            Self::List => "an array of texts",
            Self::Open => "another value",
        }
    }

    fn takes(self, value: &ValueKind) -> bool {
        match self {
            Self::Text => matches!(value, ValueKind::String(_)),
            Self::Number => matches!(value, ValueKind::I64(_)),
            Self::Switch => matches!(value, ValueKind::Boolean(_)),
            Self::List => match value {
                ValueKind::Array(items) => {
                    let is_text = |item: &Value| matches!(item.kind, ValueKind::String(_));
                    items.iter().all(is_text)
                }
                other => matches!(other, ValueKind::String(_)),
            },
            Self::Open => true,
        }
    }
}

/// All keys of settings, files of secrets included, in the order of the struct's fields as far as that is kept.
pub fn keys_of<T: Settings>() -> Vec<Key> {
    let mut keys = Vec::new();
    // Settings that cannot be written as JSON have no keys; the samples' tests would notice.
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    collect("", &defaults, &mut keys);
    for secret in T::SECRETS {
        keys.push(Key {
            name: format!("{secret}_file"),
            kind: Kind::Text,
        });
    }
    keys
}

fn collect(prefix: &str, value: &Json, keys: &mut Vec<Key>) {
    let kind = match value {
        Json::Object(section) => {
            for (name, value) in section {
                let dot = if prefix.is_empty() { "" } else { "." };
                collect(&format!("{prefix}{dot}{name}"), value, keys);
            }
            return;
        }
        Json::String(_) => Kind::Text,
        Json::Number(_) => Kind::Number,
        Json::Bool(_) => Kind::Switch,
        Json::Array(_) => Kind::List,
        Json::Null => Kind::Open,
    };
    let name = prefix.to_owned();
    keys.push(Key { name, kind });
}

/// Types of values by key.
pub(super) struct Keys {
    kinds: BTreeMap<String, Kind>,
    secrets: &'static [&'static str],
}

impl Keys {
    pub(super) fn of<T: Settings>() -> Self {
        let keys = keys_of::<T>().into_iter();
        Self {
            kinds: keys.map(|key| (key.name, key.kind)).collect(),
            secrets: T::SECRETS,
        }
    }

    /// The value of `key` that `text` stands for. Keys that nobody knows are found out later.
    pub(super) fn read(&self, key: &str, text: &str) -> Result<Value, String> {
        let Some(kind) = self.kinds.get(key).copied() else {
            return self.read_unknown(key, text);
        };
        let read = match kind {
            Kind::Number => match (text.parse::<i64>(), text.parse::<u64>()) {
                (Ok(number), _) => Some(Value::new(None, number)),
                (_, Ok(number)) => Some(Value::new(None, number)),
                _ => None,
            },
            Kind::Switch => text.parse::<bool>().ok().map(|on| Value::new(None, on)),
            Kind::Text | Kind::List | Kind::Open => Some(Value::new(None, text)),
        };
        read.ok_or_else(|| format!("{text:?} given, {} expected", kind.expected()))
    }

    /// A section instead of a key, or a key below another one, would get in the way of what is known; which of them wins
    /// would be chance.
    fn read_unknown(&self, key: &str, text: &str) -> Result<Value, String> {
        let is_below = |outer: &str, inner: &str| {
            let rest = inner.strip_prefix(outer);
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        for (known, kind) in &self.kinds {
            if is_below(key, known) {
                return Err(format!(
                    "`{key}` is a section; name a key in it, such as `{known}`"
                ));
            }
            if is_below(known, key) && *kind != Kind::Open {
                return Err(format!("unknown key; `{known}` is no section"));
            }
        }
        Ok(Value::new(None, text))
    }

    /// Refuses values of other types than their keys want.
    pub(super) fn check_kinds(&self, tree: &Value) -> Result<(), String> {
        self.check_below("", tree)
    }

    fn check_below(&self, key: &str, value: &Value) -> Result<(), String> {
        if let Some(kind) = self.kinds.get(key) {
            if kind.takes(&value.kind) {
                return Ok(());
            }
            let given = self.shown(key, &value.kind);
            return Err(format!(
                "key `{key}`: {given} given, {} expected",
                kind.expected()
            ));
        }
        let ValueKind::Table(section) = &value.kind else {
            return Ok(());
        };
        // Sorted: the same file is always refused for the same key.
        let section: BTreeMap<&String, &Value> = section.iter().collect();
        for (name, value) in section {
            let dot = if key.is_empty() { "" } else { "." };
            self.check_below(&format!("{key}{dot}{name}"), value)?;
        }
        Ok(())
    }

    fn shown(&self, key: &str, value: &ValueKind) -> String {
        match value {
            ValueKind::Table(_) => "a section".to_owned(),
            ValueKind::Array(_) => "an array".to_owned(),
            _ if self.secrets.contains(&key) => "something else".to_owned(),
            ValueKind::String(text) => format!("{text:?}"),
            other => format!("`{other}`"),
        }
    }
}

/// The first line with a number that no setting can hold: the parser only says that there is one.
pub(super) fn number_beyond_range(text: &str) -> Option<String> {
    for (number, line) in (1..).zip(text.lines()) {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let value = value
            .split('#')
            .next()
            .unwrap_or_default()
            .trim()
            .replace('_', "");
        let digits = value.trim_start_matches(['-', '+']);
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && value.parse::<i64>().is_err() {
            let key = key.trim();
            return Some(format!(
                "line {number}: key `{key}`: {value} is beyond every range"
            ));
        }
    }
    None
}
