//! Law: arrows point up the table of crates only, and each outside vocabulary has its home.

use crate::Breach;
use crate::files::SourceFile;

/// Crates and what they may import of ours, as in ARCHITECTURE.md.
const TABLE: &[(&str, &[&str])] = &[
    ("libs/types", &[]),
    ("libs/partition", &["types"]),
    ("libs/segment-log", &["types"]),
    ("libs/proto", &["types"]),
    ("libs/service", &["types"]),
    ("libs/rpc", &["proto", "service", "types"]),
    (
        "libs/raft",
        &["partition", "segment-log", "rpc", "service", "proto", "types"],
    ),
    ("services/metadata", LIBS),
    ("services/control-plane", LIBS),
    ("services/storage-node", LIBS),
    ("services/gateway", LIBS),
];

const LIBS: &[&str] = &[
    "types",
    "partition",
    "segment-log",
    "proto",
    "service",
    "rpc",
    "raft",
];

/// Outside crates that only one of ours may name.
const HOMES: &[(&str, &str)] = &[("openraft", "libs/raft"), ("sqlx", "services/metadata")];

/// Crates that are values and rules only.
const PURE: &[&str] = &["libs/types/", "libs/partition/"];
const IMPURE: &[&str] = &[
    "tokio",
    "std::fs",
    "std::net",
    "std::thread",
    "SystemTime",
    "Instant::now",
    "rand::",
    "std::env",
];

pub(crate) fn check(files: &[SourceFile]) -> Vec<Breach> {
    let mut found = Vec::new();
    for file in files {
        if file.path.ends_with("Cargo.toml") {
            found.extend(check_manifest(file));
        }
        if file.is_rust() {
            found.extend(check_homes(file));
            found.extend(check_purity(file));
            found.extend(check_generated_types(file));
        }
    }
    found
}

fn check_manifest(file: &SourceFile) -> Vec<Breach> {
    let crate_dir = file.path.trim_end_matches("/Cargo.toml");
    let mut found = Vec::new();
    let mut section = "";
    for (index, line) in file.text.lines().enumerate() {
        if line.starts_with('[') {
            section = line.trim();
        }
        let Some(name) = line
            .split(['.', ' ', '='])
            .next()
            .filter(|_| section == "[dependencies]")
        else {
            continue;
        };
        if let Some(ours) = name.strip_prefix("ptah-")
            && let Some((_, allowed)) = TABLE.iter().find(|(dir, _)| *dir == crate_dir)
            && !allowed.contains(&ours)
        {
            found.push(Breach::new(
                &file.path,
                index + 1,
                format!("{crate_dir} must not import {name}"),
            ));
        }
        for (outside, home) in HOMES {
            if name == *outside && crate_dir != *home {
                found.push(Breach::new(
                    &file.path,
                    index + 1,
                    format!("{outside} belongs to {home} only"),
                ));
            }
        }
    }
    found
}

fn check_homes(file: &SourceFile) -> Vec<Breach> {
    let mut found = Vec::new();
    for (outside, home) in HOMES {
        if file.path.starts_with(home) || file.path.starts_with("integration-tests/tidy/") {
            continue;
        }
        let import = format!("{outside}::");
        for (line, text) in file.text.lines().enumerate() {
            if text.contains(&import) && !text.trim_start().starts_with("//") {
                found.push(Breach::new(
                    &file.path,
                    line + 1,
                    format!("{outside} belongs to {home} only"),
                ));
            }
        }
    }
    found
}

fn check_purity(file: &SourceFile) -> Vec<Breach> {
    if !PURE.iter().any(|dir| file.path.starts_with(dir)) || file.is_test() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (line, text) in file
        .product_lines()
        .filter(|(_, text)| !text.trim_start().starts_with("//"))
    {
        for word in IMPURE {
            if text.contains(word) {
                let why = format!("`{word}` has no place in a pure crate: take it as an argument");
                found.push(Breach::new(&file.path, line, why));
            }
        }
    }
    found
}

/// Generated types stop at `grpc` modules, at ptah-rpc and at the client module of the command line.
fn check_generated_types(file: &SourceFile) -> Vec<Breach> {
    let allowed = file.is_test()
        || file.path.contains("/src/grpc/")
        || file.path.contains("/src/grpc.rs")
        || file.path.starts_with("libs/proto/")
        || file.path.starts_with("libs/rpc/")
        || file.path.starts_with("libs/raft/src/transport/")
        || file.path.starts_with("services/ptah/src/client");
    if allowed {
        return Vec::new();
    }
    let lines = file
        .product_lines()
        .filter(|(_, text)| !text.trim_start().starts_with("//"));
    lines
        .filter(|(_, text)| text.contains("ptah_proto::"))
        .map(|(line, _)| {
            Breach::new(
                &file.path,
                line,
                "generated types stop at `grpc` modules: convert them there",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_imports_downwards_is_found() {
        let manifest = SourceFile::new(
            "libs/partition/Cargo.toml",
            "[dependencies]\nptah-raft.workspace = true\n",
        );
        assert_eq!(check(&[manifest]).len(), 1);
    }

    #[test]
    fn a_service_that_imports_a_service_is_found() {
        let text = "[dependencies]\nptah-metadata.workspace = true\n";
        assert_eq!(
            check(&[SourceFile::new("services/gateway/Cargo.toml", text)]).len(),
            1
        );
    }

    #[test]
    fn openraft_outside_its_home_is_found_in_manifest_and_code() {
        let manifest = SourceFile::new(
            "services/gateway/Cargo.toml",
            "[dependencies]\nopenraft.workspace = true\n",
        );
        let code = SourceFile::new("services/gateway/src/lib.rs", "use openraft::Raft;\n");
        assert_eq!(check(&[manifest, code]).len(), 2);
    }

    #[test]
    fn a_clock_in_a_pure_crate_is_found_but_not_in_its_tests() {
        let code = "fn f() { std::time::SystemTime::now(); }\n#[cfg(test)]\nmod tests { use std::time::SystemTime; }\n";
        assert_eq!(
            check(&[SourceFile::new("libs/partition/src/lib.rs", code)]).len(),
            1
        );
    }

    #[test]
    fn generated_types_in_a_domain_file_are_found() {
        let code = "use ptah_proto::api::v1 as pb;\n";
        assert_eq!(
            check(&[SourceFile::new("services/gateway/src/produce.rs", code)]).len(),
            1
        );
        assert!(check(&[SourceFile::new("services/gateway/src/grpc/produce.rs", code)]).is_empty());
    }
}
