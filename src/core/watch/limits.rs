//! How many threads and descriptors the system leaves for connections.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit, getuid};

/// A watcher takes at most this part of the remaining threads: a reload doubles them, and other
/// programs need some too.
const SHARE: usize = 4;

/// How many connections a watcher may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// By the limits on threads: `pids.max` of the control groups, and `RLIMIT_NPROC`.
    pub(super) threads: usize,
    /// By the limit on descriptors, `RLIMIT_NOFILE`.
    pub(super) descriptors: usize,
}

impl Default for Limits {
    /// No limits.
    fn default() -> Self {
        Limits { threads: usize::MAX, descriptors: usize::MAX }
    }
}

impl Limits {
    /// The limits of this process, which has `own` threads of the watcher and reserves descriptors
    /// for `worker_connections`.
    pub(super) fn of_process(own: usize, worker_connections: usize) -> Limits {
        let left = left_by_cgroups().into_iter().chain(left_by_user()).min();
        let threads = left.map_or(usize::MAX, |left| ((left + own) / SHARE).max(1));
        let most = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| most as usize);
        let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count).saturating_sub(own);
        let kept = worker_connections.saturating_add(open);
        Limits { threads, descriptors: most.saturating_sub(kept) }
    }
}

/// Threads that the control groups of this process allow in addition.
fn left_by_cgroups() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let left = |folder: &Path| {
        // "max" is not a number.
        let most = number(folder.join("pids.max"))?;
        Some(most.saturating_sub(number(folder.join("pids.current"))?))
    };
    let folders = groups.lines().filter_map(folder_of_pids);
    folders.filter_map(|folder| folder.ancestors().filter_map(left).min()).min()
}

/// The folder of a line of `/proc/self/cgroup`, if that group can limit threads.
fn folder_of_pids(line: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let root = match controllers {
        "" => "/sys/fs/cgroup",
        _ if controllers.split(',').any(|name| name == "pids") => "/sys/fs/cgroup/pids",
        _ => return None,
    };
    Some(Path::new(root).join(path.trim_start_matches('/')))
}

/// Threads that this user's limit allows in addition; root has no limit.
fn left_by_user() -> Option<usize> {
    let user = getuid();
    let most = getrlimit(Resource::Nproc).current.filter(|_| !user.is_root())?;
    let of_user = |process: &fs::DirEntry| {
        process.metadata().is_ok_and(|metadata| metadata.uid() == user.as_raw())
    };
    let processes = fs::read_dir("/proc").ok()?.flatten().filter(of_user);
    let threads = processes.filter_map(|process| fs::read_dir(process.path().join("task")).ok());
    Some((most as usize).saturating_sub(threads.map(Iterator::count).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_are_found() {
        let cases = [
            ("0::/system.slice/nginx.service", Some("/sys/fs/cgroup/system.slice/nginx.service")),
            ("0::/", Some("/sys/fs/cgroup")),
            ("7:pids:/docker/1f", Some("/sys/fs/cgroup/pids/docker/1f")),
            ("4:cpu,cpuacct:/", None),
            ("nonsense", None),
        ];
        for (line, folder) in cases {
            assert_eq!(folder_of_pids(line), folder.map(|folder| Path::new(folder).join("")));
        }
    }

    #[test]
    fn worker_connections_are_not_there_for_consul() {
        let limits = |own, kept| Limits::of_process(own, kept);
        let (none, thousand) = (limits(0, 0).descriptors, limits(0, 1000).descriptors);
        assert!(none.saturating_sub(thousand) >= 990.min(none), "{none} {thousand}");
        assert_eq!(limits(0, usize::MAX).descriptors, 0);
        assert!(limits(0, 0).threads >= 1);
    }
}
