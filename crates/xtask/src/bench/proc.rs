//! What Linux says about processes under `/proc`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The part of `/proc/PID/stat` that is read here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time, in ticks, of all threads that ever were.
    ticks: u64,
}

/// The processor time that a process and its children have used.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut ticks = stat(pid)?.ticks;
    for child in children(pid)? {
        // One that ends meanwhile counts no more; the processes of a bench do not.
        ticks += stat(child).map_or(0, |stat| stat.ticks);
    }
    Ok(Duration::from_nanos(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// The memory that a process has in RAM, in KiB.
pub(super) fn resident_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    resident(&text).with_context(|| format!("{path} has no VmRSS"))
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new("/proc"))? {
        let candidate = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(candidate.filter(|&candidate| stat(candidate).is_ok_and(|stat| stat.parent == pid)));
    }
    Ok(found)
}

fn stat(pid: u32) -> Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse(&text).with_context(|| format!("{path} is not as expected"))
}

fn parse(text: &str) -> Option<Stat> {
    // The name of the program, in parentheses, may hold spaces and parentheses; the state is the first field after it.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<_> = rest.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks: number(11)? + number(12)? })
}

fn resident(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_process_are_read_whatever_its_name() {
        let text = "42 (a (b) c) S 7 42 42 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 2 0 100 1000 200";
        assert_eq!(parse(text), Some(Stat { parent: 7, ticks: 42 }));
        assert_eq!(parse("42 (cut"), None);
    }

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t   15360 kB\nThreads:\t1\n"), Some(15360));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory_and_time() {
        let own = std::process::id();
        assert!(resident_kib(own).unwrap() > 100);
        assert!(cpu_time(own).unwrap() < Duration::from_hours(1));
        let parent = stat(own).unwrap().parent;
        assert!(children(parent).unwrap().contains(&own));
    }
}
