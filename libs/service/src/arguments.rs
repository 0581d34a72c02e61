//! The command line of a service.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};

/// What a service is, for its command line and its logs.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name, as `gateway`. The program is called `ptah-` and this.
    pub name: &'static str,
    /// What it does, as one sentence.
    pub about: &'static str,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Settings file.
    pub(crate) config: Option<PathBuf>,
    /// Only look whether the settings are well.
    pub(crate) check_config: bool,
}

/// Why there is nothing to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoArguments {
    /// Help or version, to be printed as they are.
    Told(String),
    /// What is wrong, as one line.
    Wrong(String),
}

impl Program {
    /// Reads a command line, the program's own name first.
    pub(crate) fn parse(&self, line: impl IntoIterator<Item = OsString>) -> Result<Arguments, NoArguments> {
        let mut matches = self.command().try_get_matches_from(line).map_err(|error| {
            let text = error.render().to_string();
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => NoArguments::Told(text),
                // The rest of the text is usage, which `--help` shows.
                _ => {
                    let first = text.lines().next().unwrap_or_default();
                    let first = first.trim_start_matches("error: ").trim_end_matches(':');
                    NoArguments::Wrong(format!("{first}; see --help"))
                }
            }
        })?;
        Ok(Arguments {
            config: matches.remove_one("config"),
            check_config: matches.get_flag("check-config"),
        })
    }

    fn command(&self) -> Command {
        let binary = format!("ptah-{}", self.name);
        Command::new(self.name)
            .display_name(binary.clone())
            .bin_name(binary)
            .version(env!("CARGO_PKG_VERSION"))
            .about(self.about)
            .arg(
                Arg::new("config")
                    .long("config")
                    .short('c')
                    .value_name("FILE")
                    .env("PTAH_CONFIG")
                    .value_parser(ValueParser::path_buf())
                    .help("Settings file (TOML); every key can be set as PTAH_SECTION__KEY as well"),
            )
            .arg(
                Arg::new("check-config")
                    .long("check-config")
                    .action(ArgAction::SetTrue)
                    .help("Check the settings without touching data or network, say `ok` or what is wrong, and end"),
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program {
        name: "gateway",
        about: "The only door for clients.",
    };

    fn parse(line: &[&str]) -> Result<Arguments, NoArguments> {
        let line = std::iter::once(&"ptah-gateway").chain(line);
        PROGRAM.parse(line.map(OsString::from))
    }

    #[test]
    fn the_settings_file_and_the_check_are_read() {
        let read = parse(&["-c", "a.toml", "--check-config"]).unwrap();
        assert_eq!(read.config, Some(PathBuf::from("a.toml")));
        assert!(read.check_config);
        assert!(!parse(&[]).unwrap().check_config);
    }

    #[test]
    fn what_nobody_knows_is_told_in_one_line() {
        for line in [
            &["--confg", "x"][..],
            &["--config"],
            &["more"],
            &["-x"],
            &["--check-config=1"],
        ] {
            let Err(NoArguments::Wrong(told)) = parse(line) else {
                panic!("{line:?} is taken");
            };
            assert_eq!(told.lines().count(), 1, "{told}");
            let word = line[0].split('=').next().unwrap();
            assert!(told.contains(word), "{told}");
        }
    }

    #[test]
    fn help_and_version_are_no_mistakes() {
        let Err(NoArguments::Told(version)) = parse(&["--version"]) else {
            panic!("no version");
        };
        assert!(version.starts_with("ptah-gateway "), "{version}");
        assert!(matches!(parse(&["--help"]), Err(NoArguments::Told(_))));
    }
}
