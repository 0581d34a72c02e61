//! Wrong settings of every kind, given to the real programs: exit code 2, one line that names the key, nothing made.
//!
//! The keys, their types and their ranges are those of the samples in `deploy/config`, so that a new key is covered by
//! being in its sample, where another test wants it.

mod files;
mod peers;
mod programs;
mod table;

use std::collections::BTreeSet;

use crate::programs::{PROGRAMS, Program, Run, every};
use crate::table::{Refusal, at_the_limits, contradictions, refusals};

#[test]
fn every_key_refuses_every_kind_of_wrong_value() {
    let mut runs = Vec::new();
    for program in PROGRAMS {
        let refusals = refusals(program);
        // The samples were found and read.
        let keys: BTreeSet<&str> = refusals.iter().map(|refusal| refusal.key.as_str()).collect();
        assert!(keys.len() >= 15, "{}: {keys:?}", program.name);
        runs.extend(refusals.into_iter().map(|refusal| (program, refusal)));
    }
    every(runs, |(program, refusal)| is_refused(program, &refusal));
}

fn is_refused(program: &Program, refusal: &Refusal) {
    // Starting and checking must not differ in what they refuse.
    for check in [true, false] {
        let run = Run::new(program, check)
            .file(&refusal.file)
            .variables(&refusal.variables);
        let shown = format!("{} {refusal:?}", program.name);
        let outcome = run.outcome();
        let told = outcome.one_line(&shown);
        assert_eq!(outcome.code, Some(2), "{shown}: {told}");
        assert!(told.contains(&refusal.named()), "{shown}: {told}");
        assert!(!told.contains("panicked"), "{shown}: {told}");
        assert_eq!(outcome.made, Vec::<String>::new(), "{shown} made something");
    }
}

#[test]
fn the_ranges_that_the_samples_tell_are_those_of_the_programs() {
    let mut runs = Vec::new();
    for program in PROGRAMS {
        runs.extend(at_the_limits(program).into_iter().map(|limit| (program, limit)));
    }
    assert!(runs.len() > 40, "{}", runs.len());
    every(runs, |(program, (key, text))| {
        let outcome = Run::new(program, true).file(&text).outcome();
        if outcome.code == Some(0) {
            return;
        }
        // Within its range, and at odds with another key.
        let told = outcome.one_line(&text);
        let others = told.matches('`').count() / 2 > 1;
        assert!(
            told.contains(&format!("`{key}`")) && others,
            "{}: {text}: {told}",
            program.name
        );
        assert!(
            !told.contains(&format!("setting `{key}` is ")),
            "{}: {text}: {told}",
            program.name
        );
    });
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let mut runs = Vec::new();
    for program in PROGRAMS {
        runs.extend(
            contradictions(program)
                .into_iter()
                .map(|refusal| (program, refusal)),
        );
    }
    every(runs, |(program, refusal)| is_refused(program, &refusal));
}

#[test]
fn the_sample_is_well_once_there_is_a_secret() {
    for program in PROGRAMS {
        let outcome = Run::new(program, true).file(&program.sample()).outcome();
        assert_eq!(outcome.code, Some(0), "{}: {}", program.name, outcome.stderr);
        assert!(outcome.stdout.starts_with("ok: "), "{}", outcome.stdout);
        assert!(
            outcome.stdout.contains("`PTAH_CLUSTER__SECRET`"),
            "{}",
            outcome.stdout
        );
        assert!(!outcome.stdout.contains(programs::SECRET), "{}", outcome.stdout);
        assert_eq!(outcome.stderr, "");
        assert_eq!(outcome.made, Vec::<String>::new());
    }
}
