//! The table of keys and wrong values, made from a sample.

use crate::programs::Program;

/// Settings that must be refused for `key`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusal {
    /// The key.
    pub(crate) key: String,
    /// The settings file; empty for none.
    pub(crate) file: String,
    /// Variables.
    pub(crate) variables: Vec<(String, String)>,
}

impl Refusal {
    /// What the message must have: the variable, if one is wrong, or the key.
    pub(crate) fn named(&self) -> String {
        // A key that the file's parser refuses is named as it is written there, below its section.
        let (_, last) = self.key.rsplit_once('.').unwrap_or(("", &self.key));
        last.to_owned()
    }
}

/// A key of a sample.
#[derive(Clone, Debug)]
struct Key {
    section: String,
    name: String,
    value: String,
    range: Option<(i128, i128)>,
    commented: bool,
}

impl Key {
    fn full(&self) -> String {
        match self.section.as_str() {
            "" => self.name.clone(),
            section => format!("{section}.{}", self.name),
        }
    }

    fn variable(&self) -> String {
        format!("PTAH_{}", self.full().to_uppercase().replace('.', "__"))
    }

    fn is_address(&self) -> bool {
        ["_listen", "_address", "_addresses"]
            .iter()
            .any(|end| self.name.ends_with(end))
    }

    fn is_secret_file(&self) -> bool {
        self.name.ends_with("_file") && !["ports_file", "catalog_file"].contains(&self.name.as_str())
    }

    fn file(&self, value: &str) -> String {
        let section = match self.section.as_str() {
            "" => String::new(),
            section => format!("[{section}]\n"),
        };
        format!("{section}{} = {value}\n", self.name)
    }

    fn in_file(&self, value: &str) -> Refusal {
        Refusal {
            key: self.full(),
            file: self.file(value),
            variables: Vec::new(),
        }
    }

    fn in_environment(&self, value: &str) -> Refusal {
        Refusal {
            key: self.full(),
            file: String::new(),
            variables: vec![(self.variable(), value.to_owned())],
        }
    }
}

fn keys(program: &Program) -> Vec<Key> {
    let (mut section, mut comment) = (String::new(), String::new());
    let mut keys = Vec::new();
    for line in program.sample().lines() {
        let bare = line.trim_start_matches('#').trim();
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            comment.clear();
        } else if let Some((name, value)) = bare.split_once(" = ").filter(|(name, _)| !name.contains(' ')) {
            keys.push(Key {
                section: section.clone(),
                name: name.to_owned(),
                value: value.to_owned(),
                range: range(&comment),
                commented: line.starts_with('#'),
            });
            comment.clear();
        } else if line.is_empty() {
            comment.clear();
        } else {
            comment = format!("{comment} {bare}");
        }
    }
    keys
}

/// The last `1 to 8` of a comment.
fn range(comment: &str) -> Option<(i128, i128)> {
    let words: Vec<&str> = comment.split_whitespace().collect();
    let number = |word: &str| word.trim_matches(['.', ',', ';']).parse::<i128>().ok();
    let pairs = words.windows(3).filter(|window| window[1] == "to");
    pairs
        .filter_map(|window| Some((number(window[0])?, number(window[2])?)))
        .next_back()
}

/// Every key with every kind of value that it cannot have.
pub(crate) fn refusals(program: &Program) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for key in keys(program) {
        refusals.extend(wrong_values(&key));
        let misspelt = Key {
            name: format!("{}x", key.name),
            ..key.clone()
        };
        refusals.push(misspelt.in_file(&key.value));
        refusals.push(misspelt.in_environment("1"));
    }
    refusals
}

fn wrong_values(key: &Key) -> Vec<Refusal> {
    let mut wrong = vec![key.in_file("[[1]]"), key.in_file("{ x = 1 }")];
    let is_number = key.value.parse::<i64>().is_ok();
    let is_switch = ["true", "false"].contains(&key.value.as_str());
    if is_number {
        wrong.extend(
            ["\"many\"", "1.5", "true", "-1", "99999999999999999999"].map(|value| key.in_file(value)),
        );
        wrong
            .extend(["many", "1.5", "", "-1", "99999999999999999999"].map(|value| key.in_environment(value)));
        let (least, most) = key
            .range
            .unwrap_or_else(|| panic!("{} tells no range", key.full()));
        for value in [least - 1, most + 1] {
            wrong.extend([
                key.in_file(&value.to_string()),
                key.in_environment(&value.to_string()),
            ]);
        }
    } else if is_switch {
        wrong.extend(["\"perhaps\""].map(|value| key.in_file(value)));
        wrong.extend(["perhaps", ""].map(|value| key.in_environment(value)));
    } else if !key.commented {
        wrong.extend(["1", "true", "1.5"].map(|value| key.in_file(value)));
    }
    if key.is_address() {
        wrong.extend(addresses().map(|value| key.in_environment(value)));
        let quoted = |value: &str| {
            if key.value.starts_with('[') {
                format!("[\"127.0.0.1:1\", \"{value}\"]")
            } else {
                format!("\"{value}\"")
            }
        };
        wrong.extend(addresses().map(|value| key.in_file(&quoted(value))));
    }
    if key.is_secret_file() {
        wrong.extend(["/nonexistent/secret", "/", "/dev/null"].map(|value| key.in_environment(value)));
        wrong.push(key.in_file("\"/nonexistent/secret\""));
    }
    if key.name == "ports_file" {
        wrong.extend(["/nonexistent/ports.json", "/"].map(|value| key.in_environment(value)));
    }
    wrong.extend(by_name(&key.full()).iter().map(|value| key.in_environment(value)));
    wrong
}

fn addresses() -> [&'static str; 9] {
    [
        "127.0.0.1",
        "127.0.0.1:",
        ":1",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "http://127.0.0.1:1",
        "::1:1",
        "256.0.0.1:1",
        "a b:1",
    ]
}

/// What only one key is wrong with.
fn by_name(key: &str) -> &'static [&'static str] {
    match key {
        "cluster.secret" => &["", "fifteen letters"],
        "database_url" => &[
            "",
            "mysql://a/b",
            "sqlite::memory:",
            "sqlite://?mode=rwc",
            "postgres://",
            "/var/lib/ptah.db",
        ],
        "log.filter" => &["info,=nonsense="],
        "log.format" => &["", "xml"],
        "data_dir" => &[""],
        "metadata_addresses" | "control_plane_addresses" => &["", ","],
        "bootstrap.root_password" => &["short", "memphis"],
        "bootstrap.root_password_hash" => &["plain"],
        _ => &[],
    }
}

/// The least and the greatest value of every number, as a settings file.
pub(crate) fn at_the_limits(program: &Program) -> Vec<(String, String)> {
    let mut limits = Vec::new();
    for key in keys(program) {
        let Some((least, most)) = key.range.filter(|_| key.value.parse::<i64>().is_ok()) else {
            continue;
        };
        for value in [least, most] {
            limits.push((key.full(), key.file(&value.to_string())));
        }
    }
    limits
}

/// Keys that are well one by one, and not together.
pub(crate) fn contradictions(program: &Program) -> Vec<Refusal> {
    let refusal = |key: &str, variables: &[(&str, &str)]| Refusal {
        key: key.to_owned(),
        file: String::new(),
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let mut all = vec![
        // The secret is in the environment already.
        refusal(
            "cluster.secret_file",
            &[("PTAH_CLUSTER__SECRET_FILE", "/etc/hostname")],
        ),
        refusal(
            "monitor.metrics_listen",
            &[("PTAH_MONITOR__METRICS_LISTEN", "127.0.0.1:8222")],
        ),
        refusal(
            "monitor.monitor_listen",
            &[("PTAH_GRPC_LISTEN", "127.0.0.1:8222")],
        ),
    ];
    match program.name {
        "control-plane" => all.extend([
            refusal(
                "node_alive_window_ms",
                &[
                    ("PTAH_NODE_ALIVE_WINDOW_MS", "1500"),
                    ("PTAH_REPORT_INTERVAL_MS", "1000"),
                ],
            ),
            refusal(
                "bootstrap.root_password_hash",
                &[
                    ("PTAH_BOOTSTRAP__ROOT_PASSWORD", "long enough"),
                    (
                        "PTAH_BOOTSTRAP__ROOT_PASSWORD_HASH",
                        "$argon2id$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA",
                    ),
                ],
            ),
        ]),
        "storage-node" => all.push(refusal(
            "advertise_address",
            &[("PTAH_GRPC_LISTEN", "0.0.0.0:6222")],
        )),
        "gateway" => all.push(refusal(
            "consume.budget_bytes",
            &[
                ("PTAH_CONSUME__BUDGET_BYTES", "1000"),
                ("PTAH_CONSUME__ANSWER_BYTES", "1001"),
            ],
        )),
        "metadata" => {
            let mut both = refusal(
                "database_url_file",
                &[("PTAH_DATABASE_URL_FILE", "/etc/hostname")],
            );
            both.file = "database_url = \"sqlite://a.db\"\n".to_owned();
            all.push(both);
        }
        other => panic!("no contradictions of {other}"),
    }
    all
}
