//! Which process wrote something into shared memory, and whether it still lives.

use rustix::process::{Pid, getpid, test_kill_process};

/// A process: its pid and, because pids are used again, a part of its start time
/// (field 22 of `/proc/<pid>/stat`, proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId(u64);

impl ProcessId {
    /// The calling process. Changes with fork(), so it is not to be kept over one.
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

    /// Whether the process still runs; in doubt, yes.
    pub fn is_alive(self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid()) else { return false };
        if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
            return false;
        }
        let known = self.0 & u64::from(u32::MAX);
        known == 0 || start_time(self.pid()).is_none_or(|start| start == known)
    }
}

/// `None` for a process that is gone or waits to be reaped as a zombie of which only the pid is
/// left, and where /proc can't be read.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace();
    if fields.next() == Some("Z") {
        return Some(0);
    }
    let ticks: u64 = fields.nth(18)?.parse().ok()?;
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
    fn the_same_pid_with_another_start_time_is_another_process() {
        let other = ProcessId(ProcessId::own().get() ^ 1);
        assert!(!other.is_alive());
    }
}
