//! Secrets that stand in files of their own: `<key>_file` names the file, which is read once.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use config::{Value, ValueKind};

use super::environment::Variables;
use super::{ConfigError, Secret, Texts};

/// Largest file of a secret; what is larger was not meant.
const MAX_BYTES: u64 = 16 << 10;
/// Permission of everybody to read.
const OTHERS_READ: u32 = 0o004;

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SecretFile {
    /// The key that it gives a value, without `_file`.
    pub(super) key: &'static str,
    /// The file.
    pub(super) path: PathBuf,
    /// Whether every user of the machine can read it.
    pub(super) readable_by_all: bool,
}

/// What files say.
#[derive(Default)]
pub(super) struct SecretTexts {
    pub(super) texts: Texts,
    pub(super) files: Vec<SecretFile>,
}

impl SecretTexts {
    /// Takes the keys that name files out of `file` and `variables` and reads what they name. An empty name is none, and
    /// an empty secret is not given.
    pub(super) fn take(
        secrets: &'static [&'static str],
        mut file: Option<&mut config::Config>,
        variables: &mut Variables,
    ) -> Result<Self, ConfigError> {
        let mut taken = Self::default();
        for key in secrets.iter().copied() {
            let file_key = format!("{key}_file");
            let in_file = file.as_mut().and_then(|tree| take(&mut tree.cache, &file_key));
            let in_environment = take_variable(variables, &file_key);
            let named = in_environment.or(in_file).as_ref().and_then(text);
            let Some(path) = named.map(PathBuf::from) else {
                continue;
            };
            let in_file = file.as_ref().and_then(|tree| get(&tree.cache, key));
            let in_environment = variables.values().find(|variable| variable.key == key);
            let in_environment = in_environment.map(|variable| &variable.value);
            if in_environment.or(in_file).and_then(text).is_some() {
                let why = format!("and `{key}` are both set; set only one of them");
                return Err(ConfigError::invalid(file_key, why));
            }
            let (secret, readable_by_all) =
                read(&path).map_err(|why| ConfigError::invalid(&file_key, why))?;
            taken.texts.insert(key, secret);
            taken.files.push(SecretFile {
                key,
                path,
                readable_by_all,
            });
        }
        Ok(taken)
    }
}

/// A text that is not empty.
fn text(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

fn get<'a>(tree: &'a Value, key: &str) -> Option<&'a Value> {
    let (name, rest) = key.split_once('.').unwrap_or((key, ""));
    let ValueKind::Table(section) = &tree.kind else {
        return None;
    };
    let value = section.get(name)?;
    if rest.is_empty() {
        Some(value)
    } else {
        get(value, rest)
    }
}

fn take(tree: &mut Value, key: &str) -> Option<Value> {
    let ValueKind::Table(section) = &mut tree.kind else {
        return None;
    };
    match key.split_once('.') {
        Some((name, rest)) => take(section.get_mut(name)?, rest),
        None => section.remove(key),
    }
}

fn take_variable(variables: &mut Variables, key: &str) -> Option<Value> {
    let found = variables.iter().find(|(_, variable)| variable.key == key);
    let name = found.map(|(name, _)| name.clone())?;
    variables.remove(&name).map(|variable| variable.value)
}

/// The secret without the line's end, and whether everybody can read the file. Errors are the rest of a sentence that
/// starts with the key, and never show what was read.
fn read(path: &Path) -> Result<(Secret, bool), String> {
    let named = |what: &str| format!("names `{}`, which {what}", path.display());
    let unreadable = |error: std::io::Error| named(&format!("cannot be read: {error}"));
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    // A pipe that nobody writes to would be waited for without end.
    if !metadata.is_file() {
        return Err(named("is not a file"));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(named(&format!("is larger than {MAX_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| named("is not valid UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(named("is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(named("holds more than one line of text"));
    }
    let readable_by_all = metadata.permissions().mode() & OTHERS_READ != 0;
    Ok((Secret::new(text), readable_by_all))
}
