//! What a user is told about wrong settings.

use std::path::PathBuf;

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    grpc_listen: String,
    partitions: u16,
    durable: bool,
    control_plane_addresses: List,
    cluster: ClusterConfig,
    log: LogConfig,
    limits: Option<Limits>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    max_bytes: u64,
}

struct Given {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> Given {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.toml");
    std::fs::write(&path, text).unwrap();
    Given { _dir: dir, path }
}

fn env(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
    let given = file(text);
    let error = load_from::<Sample>(Some(&given.path), "PTAH", env(variables)).unwrap_err();
    let told = error.to_string();
    assert_eq!(told.lines().count(), 1, "{told}");
    told.replace(given.path.to_str().unwrap(), "FILE")
}

#[test]
fn without_file_and_environment_everything_has_its_default() {
    let settings: Sample = load_from(None, "PTAH", []).unwrap();
    assert_eq!(settings, Sample::default());
}

#[test]
fn the_environment_wins_over_the_file() {
    let given = file("grpc_listen = 'a:1'\npartitions = 3\n[cluster]\nsecret = 'from the file'\n");
    let variables = env(&[
        ("PTAH_GRPC_LISTEN", "b:2"),
        ("PTAH_CLUSTER__SECRET", "00700"),
        ("PTAH_DURABLE", "true"),
        ("PTAH_LIMITS__MAX_BYTES", "77"),
        ("PTAH_LOG__FORMAT", "json"),
        ("OTHER_PARTITIONS", "9"),
    ]);
    let settings: Sample = load_from(Some(&given.path), "PTAH", variables).unwrap();
    assert_eq!(settings.grpc_listen, "b:2");
    assert_eq!(settings.partitions, 3);
    assert!(settings.durable);
    assert_eq!(settings.cluster.secret.expose(), "00700");
    assert_eq!(settings.limits, Some(Limits { max_bytes: 77 }));
    assert_eq!(settings.log.format, LogFormat::Json);
}

#[test]
fn lists_come_from_arrays_and_from_text_with_commas() {
    let given = file("control_plane_addresses = ['a:1', 'b:2']");
    let from_file: Sample = load_from(Some(&given.path), "PTAH", []).unwrap();
    let variables = env(&[("PTAH_CONTROL_PLANE_ADDRESSES", "a:1, b:2,")]);
    let from_env: Sample = load_from(None, "PTAH", variables).unwrap();
    let expected: List = ["a:1", "b:2"].into_iter().collect();
    assert_eq!(from_file.control_plane_addresses, expected);
    assert_eq!(from_env.control_plane_addresses, expected);
}

#[test]
fn an_unknown_key_of_the_file_is_refused_by_name() {
    let told = refusal("grpc_lisen = 'a:1'", &[]);
    assert!(told.starts_with("settings file `FILE`: "), "{told}");
    assert!(
        told.contains("unknown key `grpc_lisen`, expected one of `grpc_listen`"),
        "{told}"
    );
    let told = refusal("[cluster]\nsecrets = 'a'", &[]);
    assert!(told.contains("key `cluster`: unknown key `secrets`"), "{told}");
}

#[test]
fn an_unknown_variable_is_refused_by_name() {
    let told = refusal(
        "partitions = 1",
        &[("PTAH_DURABLE", "true"), ("PTAH_PARTITONS", "2")],
    );
    assert!(
        told.starts_with("environment variable `PTAH_PARTITONS`: "),
        "{told}"
    );
    let told = refusal("", &[("PTAH_CLUSTER__SECRE", "x")]);
    assert!(
        told.starts_with("environment variable `PTAH_CLUSTER__SECRE`: "),
        "{told}"
    );
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_key() {
    let told = refusal("partitions = 'many'", &[]);
    assert!(
        told.contains("`FILE`") && told.contains("key `partitions`"),
        "{told}"
    );
    assert!(told.contains("\"many\""), "{told}");
    let told = refusal("", &[("PTAH_LIMITS__MAX_BYTES", "huge")]);
    assert!(
        told.contains("`PTAH_LIMITS__MAX_BYTES`") && told.contains("`limits.max_bytes`"),
        "{told}"
    );
    let told = refusal("[log]\nformat = 'xml'", &[]);
    assert!(
        told.ends_with("key `log.format`: `xml` is no log format; use `text` or `json`"),
        "{told}"
    );
}

#[test]
fn a_number_that_does_not_fit_is_refused_and_not_wrapped() {
    let told = refusal("partitions = 70000", &[]);
    assert!(told.contains("partitions"), "{told}");
    let told = refusal("", &[("PTAH_PARTITIONS", "-1")]);
    assert!(told.contains("PTAH_PARTITIONS"), "{told}");
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_place() {
    let told = refusal("partitions = = 3", &[]);
    let expected = "settings file `FILE`: TOML parse error at line 1, column 14: extra `=`, expected nothing";
    assert_eq!(told, expected);
}

#[test]
fn a_missing_file_is_named_with_the_system_error() {
    let path = Path::new("/nonexistent/sample.toml");
    let told = load_from::<Sample>(Some(path), "PTAH", [])
        .unwrap_err()
        .to_string();
    assert_eq!(
        told,
        "read settings file `/nonexistent/sample.toml`: No such file or directory (os error 2)"
    );
}

#[test]
fn variables_of_container_platforms_are_not_settings() {
    let variables = env(&[
        ("PTAH_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("PTAH_GATEWAY_SERVICE_PORT", "5555"),
        ("PTAH_GATEWAY_SERVICE_PORT_GRPC", "5555"),
        ("PTAH_GATEWAY_PORT", "tcp://10.0.0.1:5555"),
        ("PTAH_GATEWAY_PORT_5555_TCP", "tcp://10.0.0.1:5555"),
        ("PTAH_GATEWAY_PORT_5555_TCP_ADDR", "10.0.0.1"),
        ("PTAH_CONFIG", "/etc/ptah/gateway.toml"),
    ]);
    let settings: Sample = load_from(None, "PTAH", variables).unwrap();
    assert_eq!(settings, Sample::default());
}

#[test]
fn a_secret_is_never_shown() {
    let given = file("[cluster]\nsecret = 'hunter2 hunter2 hunter2'");
    let settings: Sample = load_from(Some(&given.path), "PTAH", []).unwrap();
    let secret = &settings.cluster.secret;
    let shown = [
        format!("{settings:?}"),
        secret.to_string(),
        serde_json::to_string(secret).unwrap(),
    ];
    assert!(
        shown
            .iter()
            .all(|text| !text.contains("hunter2") && text.contains("***")),
        "{shown:?}"
    );
}

#[test]
fn a_secret_of_the_wrong_type_is_not_shown_either() {
    let told = refusal("[cluster]\nsecret = ['hunter2']", &[]);
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn a_cluster_without_a_good_secret_is_refused() {
    for (text, expected) in [("", "is not set"), ("fifteen letters", "is too short")] {
        let section = ClusterConfig {
            secret: Secret::new(text),
        };
        let told = section.validate().unwrap_err().to_string();
        assert!(
            told.starts_with("setting `cluster.secret`") && told.contains(expected),
            "{told}"
        );
    }
}
