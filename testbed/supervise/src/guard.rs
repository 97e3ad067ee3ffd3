//! A small shell that outlives this process by a moment: it knows which process groups were started, and ends those
//! that are left when this process is gone, however that came about (Ctrl-C, `kill -9`, a time limit).

use std::{
    io::{self, Write},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

/// Reads `+GROUP` and `-GROUP` until the pipe closes, which it does with the last process that could write to it.
const SCRIPT: &str = r#"
groups=
while read -r line; do
  case $line in
    +*) groups="$groups ${line#+}" ;;
    -*) left=
        for group in $groups; do [ "$group" = "${line#-}" ] || left="$left $group"; done
        groups=$left ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"#;

static GUARD: OnceLock<io::Result<Mutex<ChildStdin>>> = OnceLock::new();

/// From now on the group ends with this process.
pub(super) fn register(group: u32) -> io::Result<()> {
    send(&format!("+{group}\n"))
}

/// The group is ended already, and its number may soon be somebody else's.
pub(super) fn unregister(group: u32) {
    // The guard can be gone only when somebody killed it; then there is nobody to tell.
    drop(send(&format!("-{group}\n")));
}

fn send(line: &str) -> io::Result<()> {
    let guard = GUARD.get_or_init(|| start().map(Mutex::new));
    let guard = guard.as_ref().map_err(|error| io::Error::new(error.kind(), format!("no guard: {error}")))?;
    guard.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes())
}

fn start() -> io::Result<ChildStdin> {
    let mut shell: Child = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    shell.stdin.take().ok_or_else(|| io::Error::other("the guard has no standard input"))
}
