//! The programs under test, started with given settings in an empty directory.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ptah_integration_tests::process;

/// A secret that is well.
pub(crate) const SECRET: &str = "config-tests-secret-0123456789";
/// Longest that a program may take to refuse.
const LIMIT: Duration = Duration::from_secs(60);
/// Programs that run at the same time.
const AT_A_TIME: usize = 4;

/// A program with settings.
pub(crate) struct Program {
    /// Its name behind `ptah-`, and that of its sample.
    pub(crate) name: &'static str,
}

/// All of them.
pub(crate) const PROGRAMS: &[Program] = &[
    Program { name: "metadata" },
    Program {
        name: "control-plane",
    },
    Program { name: "storage-node" },
    Program { name: "gateway" },
];

impl Program {
    /// The text of its sample.
    pub(crate) fn sample(&self) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/config/{}.toml", self.name));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn path(&self) -> PathBuf {
        let programs = process::programs().expect("the test lies in a target directory");
        programs.join(format!("ptah-{}", self.name))
    }
}

/// Runs `test` with every item, several at a time. A failure is that of the first item that fails.
pub(crate) fn every<T: Send>(items: Vec<T>, test: impl Fn(T) + Sync) {
    let queue = Mutex::new(items.into_iter());
    let next = || queue.lock().expect("nobody panics with the queue").next();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(item) = next() {
                        test(item);
                    }
                })
            })
            .collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// One start of a program.
pub(crate) struct Run<'a> {
    program: &'a Program,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// What it left in its directory.
    pub(crate) made: Vec<String>,
}

impl<'a> Run<'a> {
    /// A start in an empty directory, with a good secret in the environment; or only the check of the settings.
    pub(crate) fn new(program: &'a Program, check: bool) -> Self {
        let mut arguments = Vec::new();
        if check {
            arguments.push("--check-config".to_owned());
        }
        Self {
            program,
            dir: tempfile::tempdir().expect("a directory"),
            arguments,
            variables: BTreeMap::from([("PTAH_CLUSTER__SECRET".to_owned(), SECRET.to_owned())]),
        }
    }

    /// With a settings file of this text; empty for none.
    pub(crate) fn file(self, text: &str) -> Self {
        if text.is_empty() {
            return self;
        }
        self.bytes(text.as_bytes())
    }

    /// With a settings file of these bytes.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        let path = self.dir.path().join("settings.toml");
        std::fs::write(&path, bytes).expect("settings are written");
        self.arguments.push("--config".to_owned());
        self.arguments.push(path.display().to_string());
        self
    }

    /// With more of the command line.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// With variables; an empty value of the secret takes it away.
    pub(crate) fn variables(mut self, variables: &[(String, String)]) -> Self {
        self.variables.extend(variables.iter().cloned());
        self
    }

    /// Runs it to its end.
    pub(crate) fn outcome(&self) -> Outcome {
        let mut child = Command::new(self.program.path())
            .args(&self.arguments)
            .env_clear()
            .envs(&self.variables)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start ptah-{}: {error}", self.program.name));
        let code = end_of(&mut child);
        let mut outcome = Outcome {
            code,
            stdout: String::new(),
            stderr: String::new(),
            made: self.made(),
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        stdout.map(|mut from| from.read_to_string(&mut outcome.stdout));
        stderr.map(|mut from| from.read_to_string(&mut outcome.stderr));
        outcome
    }

    fn made(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("the directory is there");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.retain(|name| name != "settings.toml");
        names.sort();
        names
    }
}

impl Outcome {
    /// What it said on standard error, which is one line; on standard output it said nothing.
    pub(crate) fn one_line(&self, shown: &str) -> &str {
        assert_eq!(self.stderr.lines().count(), 1, "{shown}: {self:?}");
        assert_eq!(self.stdout, "", "{shown}");
        self.stderr.trim_end()
    }
}

/// Waits for the end; a program that runs on is killed, and has no exit code.
fn end_of(child: &mut Child) -> Option<i32> {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().expect("the process can be asked") {
            return status.code();
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
