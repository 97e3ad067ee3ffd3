//! Statistics about processes from Linux' `/proc`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The fields of `/proc/PID/stat` that are needed here.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat {
    parent: u32,
    /// User and system time of all threads, including exited ones, in ticks.
    ticks: u64,
    /// The same for all children that were waited for, recursively.
    child_ticks: u64,
}

/// Returns the CPU time of a process and its children.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut ticks = read_stat(pid)?.ticks;
    for child in child_pids(pid)? {
        // A child that exits meanwhile is not counted; the processes of a bench do not exit.
        ticks += read_stat(child).map_or(0, |stat| stat.ticks);
    }
    Ok(from_ticks(ticks))
}

/// Returns the CPU time of a process that has exited but was not waited for yet, including its descendants that were
/// waited for. Zero without `/proc`.
pub(crate) fn cpu_time_at_end(pid: u32) -> Duration {
    read_stat(pid).map(|stat| from_ticks(stat.ticks + stat.child_ticks)).unwrap_or_default()
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_nanos(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second())
}

/// Returns the CPU time of a process's threads, in nanoseconds rather than ticks. Threads that have exited are not
/// counted, so this suits programs that keep their threads.
pub(crate) fn thread_cpu_time(pid: u32) -> Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let mut sum = Duration::ZERO;
    for thread in std::fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"));
        // A thread that has exited meanwhile has no statistics.
        sum += text.ok().and_then(|text| parse_schedstat(&text)).unwrap_or_default();
    }
    Ok(sum)
}

fn parse_schedstat(schedstat: &str) -> Option<Duration> {
    Some(Duration::from_nanos(schedstat.split(' ').next()?.parse().ok()?))
}

/// Returns the resident memory of a process, in KiB.
pub(crate) fn resident_memory_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// Returns the peak resident memory of a process, in KiB.
pub(crate) fn peak_memory_kib(pid: u32) -> Result<u64> {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_status_kib(&text, field).with_context(|| format!("{path} has no {field}"))
}

fn child_pids(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new("/proc"))? {
        let candidate = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(candidate.filter(|&candidate| read_stat(candidate).is_ok_and(|stat| stat.parent == pid)));
    }
    Ok(found)
}

fn read_stat(pid: u32) -> Result<ProcessStat> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_stat(&text).with_context(|| format!("cannot parse {path}"))
}

fn parse_stat(text: &str) -> Option<ProcessStat> {
    // The program's name in parentheses may contain spaces and parentheses; the state is the first field after it.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<_> = rest.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(ProcessStat {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)?,
        child_ticks: number(13)? + number(14)?,
    })
}

fn parse_status_kib(text: &str, field: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_for_any_program_name() {
        let text = "42 (a (b) c) S 7 42 42 0 -1 4194304 100 0 0 0 30 12 4 3 20 0 2 0 100 1000 200";
        assert_eq!(parse_stat(text), Some(ProcessStat { parent: 7, ticks: 42, child_ticks: 7 }));
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn memory_is_parsed_in_kib() {
        let text = "Name:\tx\nVmHWM:\t   20000 kB\nVmRSS:\t   15360 kB\nThreads:\t1\n";
        assert_eq!(parse_status_kib(text, "VmRSS:"), Some(15360));
        assert_eq!(parse_status_kib(text, "VmHWM:"), Some(20000));
        assert_eq!(parse_status_kib("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    fn schedstat_begins_with_the_cpu_time() {
        assert_eq!(parse_schedstat("1500 27 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(parse_schedstat(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_and_cpu_time() {
        let own = std::process::id();
        assert!(resident_memory_kib(own).unwrap() > 100);
        assert!(cpu_time(own).unwrap() < Duration::from_hours(1));
        assert!(thread_cpu_time(own).unwrap() > Duration::ZERO);
        assert!(peak_memory_kib(own).unwrap() >= resident_memory_kib(own).unwrap());
        let parent = read_stat(own).unwrap().parent;
        assert!(child_pids(parent).unwrap().contains(&own));
    }
}
