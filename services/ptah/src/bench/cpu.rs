//! CPU time of processes, from `/proc/PID/stat`.

use std::path::PathBuf;

use serde::Serialize;

use crate::failure::Failure;

/// The kernel reports times in hundredths of a second on every architecture that Ptah runs on, whatever its own clock
/// does (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of one process so far.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Usage {
    pub(super) pid: u32,
    pub(super) name: String,
    seconds: f64,
}

/// CPU time that a process used during the run. The field names are the JSON output.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Used {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) cpu_seconds: f64,
    pub(super) us_per_message: f64,
}

/// Reads the CPU time of a process.
pub(super) fn read(pid: u32) -> Result<Usage, Failure> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failure::usage(format!("read CPU time of process {pid}: {error}")))?;
    parse(pid, &text).ok_or_else(|| Failure::failed(format!("`{}` has an unknown form", path.display())))
}

/// Reads the CPU time of this process.
pub(super) fn read_own() -> Result<Usage, Failure> {
    read(std::process::id())
}

fn parse(pid: u32, text: &str) -> Option<Usage> {
    // The name stands in parentheses and may hold any character, also parentheses.
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Usage {
        pid,
        name,
        seconds: (user + system) as f64 / TICKS_PER_SECOND,
    })
}

impl Usage {
    /// What was used since `before`.
    pub(super) fn since(&self, before: &Self, messages: u64) -> Used {
        let cpu_seconds = (self.seconds - before.seconds).max(0.0);
        Used {
            pid: self.pid,
            name: self.name.clone(),
            cpu_seconds,
            us_per_message: cpu_seconds * 1e6 / messages.max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_move_the_fields() {
        let text = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 9 0 0";
        let usage = parse(7, text).unwrap();
        assert_eq!((usage.name.as_str(), usage.seconds), ("a) b (c)", 4.0));
    }

    #[test]
    fn what_was_used_is_the_difference() {
        let usage = |seconds| Usage {
            pid: 1,
            name: "x".to_owned(),
            seconds,
        };
        let used = usage(3.5).since(&usage(1.5), 1_000_000);
        assert!((used.cpu_seconds - 2.0).abs() < 1e-9 && (used.us_per_message - 2.0).abs() < 1e-9);
    }

    #[test]
    fn this_process_has_a_cpu_time_and_a_missing_one_has_not() {
        assert_eq!(read_own().unwrap().pid, std::process::id());
        assert_eq!(read(u32::MAX).unwrap_err().exit().code(), 2);
    }
}
