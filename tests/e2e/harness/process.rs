//! Child processes, stopped by their pid, and what `/proc` tells of a process.

use std::fs;
use std::io;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::ports;

/// A child that doesn't outlive its owner.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Panics
    /// If it can't be started, naming it.
    pub fn spawn(command: &mut Command) -> Process {
        let child = ports::apart(|| command.spawn())
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Process { child, status: None }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input and output.
    ///
    /// # Panics
    /// Unless both were piped, and not taken yet.
    pub(crate) fn pipes(&mut self) -> (ChildStdin, ChildStdout) {
        let pipes = (self.child.stdin.take(), self.child.stdout.take());
        (pipes.0.expect("a piped input"), pipes.1.expect("a piped output"))
    }

    /// Its exit status, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            send(self.pid(), signal);
        }
    }

    /// Waits for its end, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        while self.exited().is_none() && start.elapsed() < timeout {
            thread::sleep(Duration::from_millis(2));
        }
        self.status
    }

    /// Ends it with each signal in turn, waiting as long as said; returns the one that did it.
    pub fn stop(&mut self, ladder: &[(Signal, Duration)]) -> Option<Signal> {
        for &(signal, patience) in ladder {
            if self.exited().is_some() {
                return None;
            }
            self.signal(signal);
            if self.wait(patience).is_some() {
                return Some(signal);
            }
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(&[
            (Signal::TERM, Duration::from_secs(2)),
            (Signal::KILL, Duration::from_secs(5)),
        ]);
    }
}

/// Sends `signal` to a process that may be gone already.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// Whether the process was stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    state(pid) == Some('T')
}

fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Children of a process whose title starts with `title`, oldest first.
pub fn children(pid: u32, title: &str) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let list = fs::read_to_string(path).unwrap_or_default();
    let mut pids: Vec<u32> = list.split_whitespace().filter_map(|p| p.parse().ok()).collect();
    pids.retain(|&pid| self::title(pid).starts_with(title));
    pids.sort_unstable();
    pids
}

/// Title of a process, as `ps` shows it.
pub fn title(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()
}

/// A thread of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Thread id; the main thread's is the process id.
    pub id: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// Blocked signals, bit `n - 1` for signal `n`.
    pub blocked: u64,
}

/// Threads of a process.
pub fn threads(pid: u32) -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let id = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    tasks.filter_map(id).filter_map(|id| thread(pid, id)).collect()
}

fn thread(pid: u32, id: u32) -> Option<Thread> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{id}/status")).ok()?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(|v| v.trim().to_owned())
    };
    let blocked = u64::from_str_radix(&field("SigBlk:")?, 16).ok()?;
    Some(Thread { id, name: field("Name:")?, blocked })
}

/// Open descriptors of a process: what each link says.
pub fn descriptors(pid: u32) -> Vec<String> {
    let Ok(links) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let target = |entry: io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    links.filter_map(target).map(|link| link.to_string_lossy().into_owned()).collect()
}

/// CPU time a process has used, with its threads, in clock ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> u64 {
    cpu_ticks_of(&pid.to_string())
}

/// The same of a process or thread by its folder under `/proc`: `7`, or `7/task/9`.
pub fn cpu_ticks_of(folder: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{folder}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime are fields 14 and 15 of the line; the first two are cut off here.
    [11, 12].iter().filter_map(|&n| fields.get(n)?.parse::<u64>().ok()).sum()
}
