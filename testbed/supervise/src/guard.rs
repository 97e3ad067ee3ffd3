//! A small shell that briefly outlives this process: it knows which process groups were started, and kills those that
//! are left when this process is gone, whatever ended it (Ctrl-C, `kill -9`, a time limit).

use std::{
    io::{self, Write},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

/// Reads `+GROUP` and `-GROUP` until the pipe closes, which it does when the last process that could write to it exits.
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

/// Makes the guard kill the group when this process ends.
pub(super) fn register(group: u32) -> io::Result<()> {
    send(&format!("+{group}\n"))
}

/// Makes the guard forget a group that has ended, because its id may be reused soon.
pub(super) fn unregister(group: u32) {
    // Sending fails only if the guard was killed from outside; there is nothing to undo then.
    drop(send(&format!("-{group}\n")));
}

fn send(line: &str) -> io::Result<()> {
    let guard = GUARD.get_or_init(|| start().map(Mutex::new));
    let guard =
        guard.as_ref().map_err(|error| io::Error::new(error.kind(), format!("cannot start the guard: {error}")))?;
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
