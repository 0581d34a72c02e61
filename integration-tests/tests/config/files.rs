//! What is wrong with a settings file, the command line or the environment as a whole, and secrets from files.

use std::os::unix::fs::PermissionsExt as _;

use crate::programs::{Outcome, PROGRAMS, Program, Run};

fn refused(program: &Program, outcome: &Outcome, expected: &[&str]) {
    let told = outcome.one_line(program.name);
    assert_eq!(outcome.code, Some(2), "{}: {told}", program.name);
    for expected in expected {
        assert!(
            told.contains(expected),
            "{}: {expected} is not in: {told}",
            program.name
        );
    }
    assert_eq!(outcome.made, Vec::<String>::new(), "{}", program.name);
}

#[test]
fn a_settings_file_that_cannot_be_read_is_named() {
    for program in PROGRAMS {
        let run = || Run::new(program, false);
        let outcome = run().arguments(&["--config", "/nonexistent/ptah.toml"]).outcome();
        refused(program, &outcome, &["`/nonexistent/ptah.toml`", "No such file"]);
        let outcome = run().arguments(&["--config", "/tmp"]).outcome();
        refused(program, &outcome, &["`/tmp`", "directory"]);
        let outcome = run().bytes(b"# fine\n# \xff\n").outcome();
        refused(program, &outcome, &["settings.toml", "line 2", "UTF-8"]);
        let outcome = run().bytes(b"name = 'x'\ngrpc_listen = = 3\n").outcome();
        refused(program, &outcome, &["settings.toml", "line 2"]);
        let outcome = run().bytes(b"[log]\nfilter = 'info'\n[log]\n").outcome();
        refused(program, &outcome, &["settings.toml", "line 3", "duplicate key"]);
        let outcome = run().bytes(&vec![b'#'; 2 << 20]).outcome();
        refused(program, &outcome, &["settings.toml", "1 MiB"]);
    }
}

#[test]
fn what_nobody_knows_on_the_command_line_and_in_the_environment_is_named() {
    for program in PROGRAMS {
        let outcome = Run::new(program, false).arguments(&["--confg", "x"]).outcome();
        refused(program, &outcome, &["--confg"]);
        let outcome = Run::new(program, false).arguments(&["--config"]).outcome();
        refused(program, &outcome, &["--config"]);
        for name in [
            "PTAH_GRPC_LISEN",
            "PTAH_CLUSTER__SECRE",
            "PTAH_CLUSTER",
            "PTAH_",
            "PTAH_LOG_FILTER",
        ] {
            let variables = [(name.to_owned(), "x".to_owned())];
            let outcome = Run::new(program, false).variables(&variables).outcome();
            refused(program, &outcome, &[&format!("`{name}`")]);
        }
    }
}

#[test]
fn a_secret_comes_from_a_file_and_is_never_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("secret");
    std::fs::write(&path, "hunter2 hunter2 hunter2\n").expect("a file");
    let named = path.to_str().expect("a path of text").to_owned();
    for program in PROGRAMS {
        for (mode, all) in [(0o600, false), (0o644, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("permissions");
            let variables = [
                ("PTAH_CLUSTER__SECRET".to_owned(), String::new()),
                ("PTAH_CLUSTER__SECRET_FILE".to_owned(), named.clone()),
            ];
            let outcome = Run::new(program, true).variables(&variables).outcome();
            assert_eq!(outcome.code, Some(0), "{}: {}", program.name, outcome.stderr);
            assert!(outcome.stdout.contains(&named), "{}", outcome.stdout);
            assert_eq!(
                outcome.stdout.contains("every user of this machine can read"),
                all
            );
            assert!(!outcome.stdout.contains("hunter2"), "{}", outcome.stdout);
        }
        let variables = [
            ("PTAH_CLUSTER__SECRET".to_owned(), String::new()),
            ("PTAH_CLUSTER__SECRET_FILE".to_owned(), "/dev/null".to_owned()),
        ];
        let outcome = Run::new(program, false).variables(&variables).outcome();
        refused(program, &outcome, &["`cluster.secret_file`", "`/dev/null`"]);
    }
}
