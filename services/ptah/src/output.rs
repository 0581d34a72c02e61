//! What commands print: results on stdout, everything else on stderr.
//!
//! With `--json`, stdout carries one JSON object per line and a failure is one JSON object on stderr. A reader that
//! leaves early (`ptah consume .. | head`) ends the command quietly.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// Where and how results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Output as JSON or for people.
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are JSON.
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress may be drawn: a person looks, and nothing else is on that terminal.
    pub fn shows_progress(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Prints a result: as one line of JSON, or as `text` writes it.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let mut line = if self.json {
            serde_json::to_string(value).map_err(|error| Failure::failed(format!("write json: {error}")))?
        } else {
            text(value)
        };
        if !line.is_empty() && !line.ends_with('\n') {
            line.push('\n');
        }
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(line.as_bytes())
            .and_then(|()| stdout.flush())
            .map_err(|error| write_failure(&error))
    }

    /// Says something beside the result.
    pub fn note(&self, text: &str) {
        // Nobody can be told that stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Tells why the command ends.
    pub fn report(&self, failure: &Failure) {
        let Some(message) = failure.message() else {
            return;
        };
        if !self.json {
            self.note(&format!("error: {}", one_line(message)));
            return;
        }
        let error = serde_json::json!({
            "error": {
                "kind": failure.kind().code(),
                "message": message,
                "retryable": failure.kind().is_retryable(),
                "exit_code": failure.exit().code(),
            }
        });
        self.note(&error.to_string());
    }
}

/// A failure to write to stdout.
pub fn write_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::reader_gone();
    }
    Failure::failed(format!("write to stdout: {error}"))
}

/// A table without lines, as people pipe it into other tools.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

/// The table as text without blanks at line ends.
pub fn table_text(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        // The table pads both sides of every cell.
        text.push_str(line.strip_prefix(' ').unwrap_or(&line).trim_end());
        text.push('\n');
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        assert_eq!(one_line("a\n  b\r\nc"), "a b c");
    }

    #[test]
    fn tables_have_no_blanks_at_line_ends() {
        let mut table = table(["NAME", "ID"]);
        table.add_row(["orders", "7"]);
        for line in table_text(&table).lines() {
            assert_eq!(line, line.trim_end());
        }
    }

    #[test]
    fn a_closed_pipe_is_quiet_and_a_full_disk_is_not() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(write_failure(&closed).message(), None);
        assert_eq!(write_failure(&full).exit().code(), 1);
    }
}
