//! Law: outside vocabulary, registries and machine paths stay out of files that have no business with them.

use crate::Breach;
use crate::files::SourceFile;

/// Words of the outside protocols. Only the doors know them.
const SDK_WORDS: [&str; 3] = ["jetstream", "memphis", "nats"];
const SDK_HOMES: [&str; 4] = [
    "libs/nats/",
    "libs/sdk-api/",
    "services/gateway/",
    "services/ptah/src/bench",
];
/// The one password that existing examples use. Its name marks the lines that may hold it.
const DEFAULT_PASSWORD: &str = "DEFAULT_ROOT_PASSWORD";

/// Places of one person's machine that a clone elsewhere does not have.
const MACHINE_PATHS: [&str; 3] = ["/home/", "/root/", "/Users/"];

/// What product code must not contain, and what to do instead.
const BANNED: [(&str, &str); 4] = [
    ("todo!(", "finish it"),
    ("unimplemented!(", "finish it"),
    (
        "#[ignore",
        "a test that is not run is not a test: fix it or delete it",
    ),
    ("panic!(\"not implemented", "finish it"),
];

pub(crate) fn check(files: &[SourceFile]) -> Vec<Breach> {
    let own = |file: &&SourceFile| !file.path.starts_with("integration-tests/tidy/");
    let mut found = Vec::new();
    for file in files.iter().filter(own) {
        found.extend(check_sdk_words(file));
        found.extend(check_foreign(file));
        found.extend(check_banned(file));
    }
    found
}

fn check_sdk_words(file: &SourceFile) -> Vec<Breach> {
    let is_code = file.is_rust() || file.path.ends_with(".proto");
    let at_home = SDK_HOMES.iter().any(|home| file.path.starts_with(home));
    if !is_code || at_home || file.path.starts_with("integration-tests/") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (index, line) in file
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.contains(DEFAULT_PASSWORD))
    {
        let lower = line.to_ascii_lowercase();
        for word in SDK_WORDS {
            if contains_word(&lower, word) {
                found.push(Breach::new(
                    &file.path,
                    index + 1,
                    format!("`{word}` belongs to the doors only"),
                ));
            }
        }
    }
    found
}

/// Whether `word` stands in `text` with no letter beside it, so that `alternates` is not `nats`.
fn contains_word(text: &str, word: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphabetic());
    text.match_indices(word).any(|(start, _)| {
        !is_letter(text[..start].chars().next_back()) && !is_letter(text[start + word.len()..].chars().next())
    })
}

fn check_foreign(file: &SourceFile) -> Vec<Breach> {
    // Lock files name where packages come from, and sample records are somebody else's words.
    if file.path.ends_with(".lock") || file.path.starts_with("integration-tests/data/") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for path in MACHINE_PATHS.iter().filter(|path| line.contains(**path)) {
            found.push(Breach::new(
                &file.path,
                index + 1,
                format!("`{path}` is a place of one machine"),
            ));
        }
        if let Some((_, rest)) = line.split_once("https://")
            && rest
                .split(['/', '"', ' ', ')'])
                .next()
                .is_some_and(|host| host.contains('.'))
        {
            found.push(Breach::new(
                &file.path,
                index + 1,
                "a host of somebody else's is not part of the product",
            ));
        }
    }
    found
}

fn check_banned(file: &SourceFile) -> Vec<Breach> {
    if !file.is_rust() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (index, line) in file
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
    {
        for (word, advice) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
            found.push(Breach::new(&file.path, index + 1, format!("`{word}`: {advice}")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_vocabulary_is_found_as_a_word_only() {
        let file = |text: &str| [SourceFile::new("libs/raft/src/lib.rs", text)];
        assert_eq!(check(&file("// like NATS does")).len(), 1);
        assert!(check(&file("let alternates = 1;")).is_empty());
        assert!(check(&[SourceFile::new("services/gateway/src/nats.rs", "// NATS")]).is_empty());
    }

    #[test]
    fn unfinished_code_and_ignored_tests_are_found() {
        let text = "fn f() { todo!() }\n#[ignore]\nfn g() {}\n";
        assert_eq!(check(&[SourceFile::new("libs/raft/src/lib.rs", text)]).len(), 2);
    }

    #[test]
    fn paths_of_one_machine_and_foreign_hosts_are_found() {
        assert_eq!(
            check(&[SourceFile::new("README.md", "see https://example.org/x")]).len(),
            1
        );
        assert_eq!(
            check(&[SourceFile::new("README.md", "cd /home/somebody")]).len(),
            1
        );
    }
}
