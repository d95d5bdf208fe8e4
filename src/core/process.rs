//! Identifies processes that write into shared memory, and whether they still run.

use rustix::process::{Pid, getpid, test_kill_process};

/// A process: its pid and, because pids are used again, a part of its start time
/// (field 22 of `/proc/<pid>/stat`, proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId(u64);

impl ProcessId {
    /// The calling process. It must not be kept across a fork().
    pub fn own() -> ProcessId {
        let pid = getpid().as_raw_nonzero().get();
        ProcessId((pid as u64) << 32 | start_time(pid).unwrap_or(0))
    }

    pub(crate) fn from_raw(raw: u64) -> ProcessId {
        ProcessId(raw)
    }

    /// Never 0.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The pid.
    pub fn pid(self) -> i32 {
        (self.0 >> 32) as i32
    }

    /// Whether the process still runs; `true` if unknown.
    pub fn is_alive(self) -> bool {
        // A negative number would mean a group of processes.
        let Some(pid) = Pid::from_raw(self.pid().max(0)) else { return false };
        if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
            return false;
        }
        let known = self.0 & u64::from(u32::MAX);
        known == 0 || start_time(self.pid()).is_none_or(|start| start == known)
    }
}

/// `None` if the process is gone or /proc can't be read; 0 for a zombie.
fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace();
    let is_zombie = fields.next() == Some("Z");
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    // A killed process is a zombie as soon as its first thread has ended. Its other threads may still
    // run for a moment, and one of them may be a publisher.
    if is_zombie && threads <= 1 {
        return Some(0);
    }
    let ticks: u64 = fields.nth(1)?.parse().ok()?;
    Some((ticks & u64::from(u32::MAX)).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_running_process_is_alive_and_a_reaped_one_is_not() {
        assert!(ProcessId::own().is_alive());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let id = ProcessId((pid as u64) << 32 | start_time(pid).unwrap());
        assert!(id.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn a_killed_process_that_nobody_reaped_is_dead() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        let id = ProcessId((pid as u64) << 32 | start_time(pid).unwrap());
        child.kill().unwrap();
        while start_time(pid) != Some(0) {
            std::thread::yield_now();
        }
        assert!(!id.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn a_killed_process_is_dead_only_when_its_last_thread_is() {
        // As Linux 6 shows a process whose first thread has ended.
        let stat = |threads| {
            format!(
                "71 (nginx) Z) Z 70 70 69 0 -1 4227148 360 0 0 0 0 0 0 0 20 0 {threads} 0 1272655 \
                 0 0 18446744073709551615 0 0 0 0 0 0 0"
            )
        };
        assert_eq!(parse_start_time(&stat(2)), Some(1272655));
        assert_eq!(parse_start_time(&stat(1)), Some(0));
        assert_eq!(parse_start_time(&stat(1).replace(") Z ", ") S ")), Some(1272655));
    }

    #[test]
    fn the_same_pid_with_another_start_time_is_another_process() {
        let other = ProcessId(ProcessId::own().get() ^ 1);
        assert!(!other.is_alive());
    }
}
