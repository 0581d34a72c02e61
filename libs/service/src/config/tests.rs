//! What a user is told about wrong settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    grpc_listen: String,
    partitions: u16,
    durable: bool,
    control_plane_addresses: List,
    cluster: ClusterConfig,
    log: LogConfig,
    monitor: MonitorConfig,
    shutdown: ShutdownConfig,
    limits: Option<Limits>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    max_bytes: u64,
}

impl Settings for Sample {
    fn validate(&self) -> Result<(), ConfigError> {
        self.cluster.validate()
    }
    fn log(&self) -> &LogConfig {
        &self.log
    }
    fn monitor(&self) -> &MonitorConfig {
        &self.monitor
    }
    fn shutdown(&self) -> &ShutdownConfig {
        &self.shutdown
    }
    fn ports_file(&self) -> Option<&Path> {
        None
    }
}

fn read(file: Option<&Path>, env: Vec<(String, String)>) -> Sample {
    load_from::<Sample>(file, "PTAH", env).unwrap().settings
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
    let settings = read(None, Vec::new());
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
    let settings = read(Some(&given.path), variables);
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
    let from_file = read(Some(&given.path), Vec::new());
    let variables = env(&[("PTAH_CONTROL_PLANE_ADDRESSES", "a:1, b:2,")]);
    let from_env = read(None, variables);
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
    let settings = read(None, variables);
    assert_eq!(settings, Sample::default());
}

#[test]
fn a_secret_is_never_shown() {
    let given = file("[cluster]\nsecret = 'hunter2 hunter2 hunter2'");
    let settings = read(Some(&given.path), Vec::new());
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

/// Text in a file that only its owner can read.
fn secret_file(bytes: &[u8]) -> Given {
    use std::os::unix::fs::PermissionsExt as _;
    let given = file("");
    std::fs::write(&given.path, bytes).unwrap();
    std::fs::set_permissions(&given.path, std::fs::Permissions::from_mode(0o600)).unwrap();
    given
}

fn loaded(text: &str, variables: &[(&str, &str)]) -> Loaded<Sample> {
    let given = file(text);
    load_from(Some(&given.path), "PTAH", env(variables)).unwrap()
}

#[test]
fn a_secret_comes_from_a_file_without_its_line_end() {
    for content in [
        "from a file, 1234",
        "from a file, 1234\n",
        "from a file, 1234\r\n",
    ] {
        let secret = secret_file(content.as_bytes());
        let path = secret.path.to_str().unwrap();
        let by_file = loaded(&format!("[cluster]\nsecret_file = {path:?}"), &[]);
        let by_variable = loaded("", &[("PTAH_CLUSTER__SECRET_FILE", path)]);
        for loaded in [by_file, by_variable] {
            assert_eq!(loaded.settings.cluster.secret.expose(), "from a file, 1234");
            let told = loaded.sources.to_string();
            assert!(told.contains(path) && !told.contains("1234"), "{told}");
            assert!(!told.contains("every user"), "{told}");
        }
    }
}

#[test]
fn a_file_that_everybody_can_read_is_taken_and_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let secret = secret_file(b"from a file, 1234");
    std::fs::set_permissions(&secret.path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let path = secret.path.to_str().unwrap();
    let told = loaded("", &[("PTAH_CLUSTER__SECRET_FILE", path)])
        .sources
        .to_string();
    assert!(told.contains("every user of this machine can read"), "{told}");
}

#[test]
fn a_secret_and_a_file_for_it_exclude_each_other() {
    let secret = secret_file(b"from a file, 1234");
    let path = secret.path.to_str().unwrap();
    let both = "setting `cluster.secret_file` and `cluster.secret` are both set; set only one of them";
    let in_file = format!("[cluster]\nsecret = 'x'\nsecret_file = {path:?}");
    assert_eq!(refusal(&in_file, &[]), both);
    let variables = [("PTAH_CLUSTER__SECRET_FILE", path)];
    assert_eq!(refusal("[cluster]\nsecret = 'x'", &variables), both);
    let variables = [("PTAH_CLUSTER__SECRET_FILE", path), ("PTAH_CLUSTER__SECRET", "x")];
    assert_eq!(refusal("", &variables), both);
    // The samples show both keys, empty.
    let empty = "[cluster]\nsecret = ''\nsecret_file = ''";
    assert!(loaded(empty, &[]).settings.cluster.secret.is_empty());
}

#[test]
fn a_file_that_holds_no_secret_is_refused_with_key_and_path() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &str| {
        let told = refusal("", &[("PTAH_CLUSTER__SECRET_FILE", path)]);
        assert!(
            told.starts_with("setting `cluster.secret_file` names `"),
            "{told}"
        );
        assert!(told.contains(path) && !told.contains("hunter2"), "{told}");
        told
    };
    assert!(refused("/nonexistent/secret").contains("No such file"));
    assert!(refused(folder.path().to_str().unwrap()).ends_with("is not a file"));
    let large = vec![b'x'; 17 << 10];
    let cases: [(&[u8], &str); 5] = [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hunter2\nhunter2\n", "holds more than one line of text"),
        (b"hunter2\xff", "is not valid UTF-8"),
        (&large, "is larger than 16384 bytes"),
    ];
    for (bytes, expected) in cases {
        let secret = secret_file(bytes);
        let told = refused(secret.path.to_str().unwrap());
        assert!(told.ends_with(expected), "{told}");
    }
}

#[test]
fn only_secrets_have_files() {
    let told = refusal("grpc_listen_file = '/etc/hostname'", &[]);
    assert!(told.contains("unknown key `grpc_listen_file`"), "{told}");
}

#[test]
fn values_are_never_converted() {
    for (text, key) in [
        ("partitions = '3'", "partitions"),
        ("partitions = 3.5", "partitions"),
        ("partitions = true", "partitions"),
        ("durable = 1", "durable"),
        ("durable = 'yes'", "durable"),
        ("grpc_listen = 5", "grpc_listen"),
        ("[grpc_listen]\nx = 1", "grpc_listen"),
        ("control_plane_addresses = [1]", "control_plane_addresses"),
        ("cluster = 'x'", "cluster"),
        ("partitions = 99999999999999999999 # many", "partitions"),
    ] {
        let told = refusal(text, &[]);
        assert!(
            told.contains(&format!("key `{key}`")) || told.contains("`cluster`"),
            "{told}"
        );
    }
    for (name, value) in [
        ("PTAH_PARTITIONS", "yes"),
        ("PTAH_PARTITIONS", "3.0"),
        ("PTAH_PARTITIONS", ""),
        ("PTAH_DURABLE", "1"),
        ("PTAH_CLUSTER", "x"),
        ("PTAH_PARTITIONS__X", "x"),
        ("PTAH_CLUSTER__SECRET__X", "x"),
    ] {
        // Beside a variable that fits, in any order of the two.
        let beside = [("PTAH_CLUSTER__SECRET", "a secret of sixteen"), (name, value)];
        let told = refusal("", &beside);
        assert!(told.contains(&format!("`{name}`")), "{told}");
        let told = refusal("", &[(name, value)]);
        assert!(told.contains(&format!("`{name}`")), "{told}");
    }
}

#[test]
fn a_file_that_is_no_text_is_refused_with_its_line() {
    let given = file("");
    std::fs::write(&given.path, b"partitions = 1\n# \xff\n").unwrap();
    let told = load_from::<Sample>(Some(&given.path), "PTAH", [])
        .unwrap_err()
        .to_string();
    assert!(told.ends_with("line 2 is not valid UTF-8"), "{told}");
    let folder = given.path.parent().unwrap();
    let told = load_from::<Sample>(Some(folder), "PTAH", [])
        .unwrap_err()
        .to_string();
    assert!(told.contains("directory"), "{told}");
}

#[test]
fn addresses_are_host_and_port() {
    for well in [
        "127.0.0.1:1",
        "[::1]:1",
        "a-b.c_d:65535",
        "localhost:80",
        "[fe80::1%eth0]:1",
    ] {
        check_dial("key", well).unwrap();
    }
    check_listen("key", "0.0.0.0:0").unwrap();
    for wrong in [
        "",
        "a",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:-1",
        "::1:5",
        "[::g]:1",
        "a b:1",
        "http://a:1",
        "a/b:1",
        "1.2.3:1",
        "256.0.0.1:1",
        "a@b:1",
        "ä:1",
        "a:1:2",
        " a:1",
        "a:1 ",
    ] {
        let told = check_dial("key", wrong).unwrap_err().to_string();
        assert!(told.starts_with("setting `key` "), "{told}");
    }
}

#[test]
fn listeners_at_one_address_are_refused_by_both_keys() {
    let section = MonitorConfig::default();
    section.validate(&[("grpc_listen", "127.0.0.1:1")]).unwrap();
    let told = section
        .validate(&[("grpc_listen", "127.0.0.1:7777")])
        .unwrap_err();
    let told = told.to_string();
    assert!(
        told.contains("`monitor.metrics_listen`") && told.contains("`grpc_listen`"),
        "{told}"
    );
    let anywhere = MonitorConfig {
        monitor_listen: "127.0.0.1:0".to_owned(),
        metrics_listen: "127.0.0.1:0".to_owned(),
    };
    anywhere.validate(&[("grpc_listen", "127.0.0.1:0")]).unwrap();
}

const SAMPLE: &str = "# Address.\ngrpc_listen = ''\n# Partitions, 1 to 8.\npartitions = 0\n# On disk.\ndurable = false\n\
    # Several.\ncontrol_plane_addresses = []\n# Bytes.\n# limits = { max_bytes = 1 }\n\
    [cluster]\n# Secret.\nsecret = ''\n# Its file.\nsecret_file = ''\n\
    [log]\n# Filter.\nfilter = 'info,openraft=off'\n# Form.\nformat = 'text'\n\
    [monitor]\n# One.\nmonitor_listen = '127.0.0.1:8222'\n# Two.\nmetrics_listen = '127.0.0.1:7777'\n\
    [shutdown]\n# Time, 0 to 300000.\ndrain_ms = 0\n# Time, 1000 to 600000.\ntimeout_ms = 25000\n";

#[test]
fn a_sample_is_compared_with_the_code() {
    let well = |text: &str| sample::check::<Sample>(&file(text).path);
    well(SAMPLE).unwrap();
    for (from, to, expected) in [
        ("partitions = 0", "partitions = 1", "not the defaults"),
        ("# On disk.\ndurable = false\n", "", "`durable` is missing"),
        ("# On disk.\n", "", "`durable` has no comment"),
        (
            "durable = false",
            "# durable = false",
            "`durable` is to be a comment",
        ),
        ("1 to 8", "some", "`partitions` says no range"),
        (
            "# On disk.",
            "# More.\nmore = 1\n# On disk.",
            "`more` is no key of the code",
        ),
        (
            "# Its file.\nsecret_file = ''\n",
            "",
            "`cluster.secret_file` is missing",
        ),
    ] {
        let told = well(&SAMPLE.replacen(from, to, 1)).unwrap_err();
        assert!(told.contains(expected), "{told}");
    }
}
