//! Sample files of settings: every key with its default, for people to copy. Tests of the services compare them with the
//! code, so that they stay true.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use super::{Key, Kind, Settings, keys_of, load_from, secret};

/// A key as a sample shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The key with its section, as `cluster.secret`.
    pub key: String,
    /// Its value as TOML.
    pub value: String,
    /// Whether the line is a comment, which it is for keys without a default.
    pub commented: bool,
    /// The comment above it, as one line.
    pub comment: String,
    /// Least and greatest value, when the comment names them as `1 to 8`.
    pub range: Option<(u64, u64)>,
}

/// The keys that a sample shows, in its order.
pub fn read(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let (mut section, mut comment) = (String::new(), Vec::new());
    for line in text.lines() {
        let bare = line.trim_start_matches('#').trim();
        let commented = line.starts_with('#');
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
            comment.clear();
        } else if let Some((name, value)) = bare.split_once(" = ").filter(|(name, _)| is_name(name)) {
            let comment = std::mem::take(&mut comment).join(" ");
            lines.push(Line {
                key: format!("{section}{name}"),
                value: value.to_owned(),
                commented,
                range: range_of(&comment),
                comment,
            });
        } else if commented {
            comment.push(bare.to_owned());
        } else {
            comment.clear();
        }
    }
    lines
}

fn is_name(text: &str) -> bool {
    let of_a_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !text.is_empty() && text.bytes().all(of_a_name)
}

/// The last `least to most` of a comment.
fn range_of(comment: &str) -> Option<(u64, u64)> {
    let number = |word: &str| {
        word.trim_matches([',', '.', ';', '(', ')', ':'])
            .parse::<u64>()
            .ok()
    };
    let words: Vec<&str> = comment.split(' ').collect();
    let ranges = words.windows(3).filter(|window| window[1] == "to");
    ranges
        .filter_map(|window| Some((number(window[0])?, number(window[2])?)))
        .next_back()
}

/// Compares the sample at `path` with the code: the same keys, defaults as values, a comment for each key, and a range
/// for each number. Says everything that differs.
pub fn check<T: Settings + PartialEq + Debug>(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = read(&text);
    let keys = keys_of::<T>();
    let mut wrong = Vec::new();
    let shown: BTreeMap<&str, &Line> = lines.iter().map(|line| (line.key.as_str(), line)).collect();
    for key in &keys {
        match shown.get(key.name.as_str()) {
            Some(line) => wrong.extend(differences(key, line)),
            None => wrong.push(format!("`{}` is missing", key.name)),
        }
    }
    for line in &lines {
        if !keys.iter().any(|key| key.name == line.key) {
            wrong.push(format!("`{}` is no key of the code", line.key));
        }
    }
    wrong.extend(undeclared_secrets::<T>());
    match load_from::<T>(Some(path), "PTAH", []) {
        Ok(loaded) if loaded.settings == T::default() => {}
        Ok(loaded) => wrong.push(format!("not the defaults: {:?}", loaded.settings)),
        Err(error) => wrong.push(error.to_string()),
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("; "))
    }
}

fn differences(key: &Key, line: &Line) -> Vec<String> {
    let mut wrong = Vec::new();
    if line.comment.is_empty() {
        wrong.push(format!("`{}` has no comment", key.name));
    }
    if line.commented != (key.kind == Kind::Open) {
        let why = "is to be a comment exactly when it has no default";
        wrong.push(format!("`{}` {why}", key.name));
    }
    if key.kind == Kind::Number && line.range.is_none() {
        let why = "says no range; end its comment with `1 to 8` or the like";
        wrong.push(format!("`{}` {why}", key.name));
    }
    wrong
}

/// Fields of type `Secret` that cannot be given in a file of their own.
fn undeclared_secrets<T: Settings>() -> Vec<String> {
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    let pointer = |key: &str| format!("/{}", key.replace('.', "/"));
    let is_secret = |key: &Key| {
        let value = defaults.pointer(&pointer(&key.name));
        value.and_then(|value| value.as_str()) == Some(secret::SHOWN)
    };
    let secrets = keys_of::<T>().into_iter().filter(is_secret);
    secrets
        .filter(|key| !T::SECRETS.contains(&key.name.as_str()))
        .map(|key| format!("`{}` is not in `Settings::SECRETS`", key.name))
        .collect()
}
