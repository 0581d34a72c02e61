//! Law: every crate has the same places, so that a reader finds his way in all of them after seeing one.

use std::collections::BTreeSet;

use crate::Breach;
use crate::files::SourceFile;

/// Files of every service.
const SERVICE_PLACES: [&str; 7] = [
    "README.md",
    "src/main.rs",
    "src/lib.rs",
    "src/config.rs",
    "src/app.rs",
    "src/metrics.rs",
    "src/error.rs",
];
const SERVICES: [&str; 4] = [
    "services/metadata",
    "services/control-plane",
    "services/storage-node",
    "services/gateway",
];
/// A file longer than this is split.
const MAX_FILE_LINES: usize = 600;
/// `main` only starts things.
const MAX_MAIN_LINES: usize = 60;
/// Crates that must never be linked, and why.
const BANNED_CRATES: [(&str, &str); 5] = [
    ("aws-lc-rs", "ring is the one crypto backend"),
    ("openssl-sys", "ring is the one crypto backend"),
    ("native-tls", "ring is the one crypto backend"),
    ("rsa", "timing side channel without a fix"),
    ("rustls-pemfile", "unmaintained"),
];

pub(crate) fn check(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = check_places(files);
    for file in files {
        if file.path.ends_with("Cargo.toml")
            && (file.path.starts_with("libs/") || file.path.starts_with("services/"))
        {
            found.extend(check_manifest(file));
        }
        if file.path == "Cargo.lock" {
            found.extend(check_lock(file));
        }
        if file.is_rust() {
            found.extend(check_length(file));
        }
    }
    found
}

fn check_places(files: &[SourceFile]) -> Vec<Breach> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let mut found = Vec::new();
    for service in SERVICES
        .iter()
        .filter(|dir| paths.contains(format!("{dir}/Cargo.toml").as_str()))
    {
        for place in SERVICE_PLACES {
            let path = format!("{service}/{place}");
            if !paths.contains(path.as_str()) {
                found.push(Breach::new(&path, 0, "every service has this file"));
            }
        }
        let has_grpc = paths
            .iter()
            .any(|path| path.starts_with(&format!("{service}/src/grpc")));
        if !has_grpc {
            found.push(Breach::new(
                &format!("{service}/src/grpc/"),
                0,
                "every service has this module",
            ));
        }
    }
    for manifest in paths
        .iter()
        .filter(|path| path.starts_with("libs/") && path.ends_with("/Cargo.toml"))
    {
        let readme = manifest.replace("Cargo.toml", "README.md");
        if !paths.contains(readme.as_str()) {
            found.push(Breach::new(&readme, 0, "every crate has a README"));
        }
    }
    found
}

fn check_manifest(file: &SourceFile) -> Vec<Breach> {
    let mut found = Vec::new();
    for needed in [
        "license.workspace = true",
        "rust-version.workspace = true",
        "[lints]\nworkspace = true",
    ] {
        if !file.text.contains(needed) {
            found.push(Breach::new(
                &file.path,
                0,
                format!("lacks `{}`", needed.replace('\n', " ")),
            ));
        }
    }
    let mut in_dependencies = false;
    for (index, line) in file.text.lines().enumerate() {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
        } else if in_dependencies && line.contains("version =") {
            found.push(Breach::new(
                &file.path,
                index + 1,
                "versions live in the workspace manifest",
            ));
        }
    }
    found
}

fn check_lock(file: &SourceFile) -> Vec<Breach> {
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for (name, why) in BANNED_CRATES {
            if line == format!("name = \"{name}\"") {
                found.push(Breach::new(
                    &file.path,
                    index + 1,
                    format!("{name} is banned: {why}"),
                ));
            }
        }
    }
    found
}

fn check_length(file: &SourceFile) -> Vec<Breach> {
    let lines = file.text.lines().count();
    let is_main = file.path.starts_with("services/") && file.path.ends_with("src/main.rs");
    let limit = if is_main { MAX_MAIN_LINES } else { MAX_FILE_LINES };
    if lines > limit && !file.is_test() {
        return vec![Breach::new(
            &file.path,
            0,
            format!("{lines} lines; split it at {limit}"),
        )];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_its_places_is_found() {
        let found = check(&[SourceFile::new("services/gateway/Cargo.toml", "")]);
        assert!(
            found
                .iter()
                .any(|breach| breach.path == "services/gateway/src/app.rs")
        );
        assert!(
            found
                .iter()
                .any(|breach| breach.path == "services/gateway/src/grpc/")
        );
    }

    #[test]
    fn a_version_in_a_member_is_found() {
        let text = "license.workspace = true\nrust-version.workspace = true\n[lints]\nworkspace = true\n\
                    [dependencies]\nbytes = { version = \"1\" }\n";
        let found = check(&[SourceFile::new("services/ptah/Cargo.toml", text)]);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_banned_crate_and_a_long_file_are_found() {
        let lock = SourceFile::new("Cargo.lock", "name = \"openssl-sys\"\n");
        let long = SourceFile::new("libs/raft/src/host.rs", &"\n".repeat(MAX_FILE_LINES + 1));
        assert_eq!(check(&[lock, long]).len(), 2);
    }
}
