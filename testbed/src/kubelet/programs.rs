//! Programs of this machine that run in place of images.

use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

/// Image whose containers run a program of this machine, which their `command` must name.
pub const HOST_IMAGE: &str = "host";

/// Creates the process of a container.
pub type ProcessFactory = Arc<dyn Fn(&Invocation) -> Result<LaunchSpec> + Send + Sync>;

/// What a container runs, except for the program: variables are expanded, and paths are host paths.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Name of the pod.
    pub pod: String,
    /// IP address of the pod.
    pub address: Ipv4Addr,
    /// Command that replaces the image's own program, if not empty.
    pub command: Vec<String>,
    /// Arguments of the container.
    pub args: Vec<String>,
    /// Complete environment of the process.
    pub env: BTreeMap<String, String>,
}

/// The process of a container, not started yet.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Command line; the kubelet sets the environment.
    pub command: Command,
    /// How long the process may take to clean up when the testbed ends.
    pub termination_grace: Duration,
}

/// The programs that run in place of images.
#[derive(Clone, Default)]
pub struct ImagePrograms {
    by_image: BTreeMap<String, ProcessFactory>,
}

impl ImagePrograms {
    /// Returns a set that knows only [`HOST_IMAGE`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `file` in place of `image`.
    #[must_use]
    pub fn with_program(self, image: &str, file: &Path) -> Self {
        let file = file.to_owned();
        self.with_factory(image, Arc::new(move |run| Ok(run.launch_spec(&file))))
    }

    /// Runs what `factory` creates in place of `image`.
    #[must_use]
    pub fn with_factory(mut self, image: &str, factory: ProcessFactory) -> Self {
        self.by_image.insert(image.to_owned(), factory);
        self
    }

    /// Creates the process of a container with this image.
    pub(super) fn launch(&self, image: &str, invocation: &Invocation) -> Result<LaunchSpec> {
        let known = |name: &&str| self.by_image.contains_key(*name);
        let name = image_names(image).into_iter().find(known);
        if let Some(factory) = name.and_then(|name| self.by_image.get(name)) {
            return factory(invocation);
        }
        let is_host = image_names(image).contains(&HOST_IMAGE);
        anyhow::ensure!(
            is_host,
            "no program is registered for the image {image:?}, only for {:?}",
            self.by_image.keys()
        );
        let program = invocation.command.first().context("a container of the image `host` must have a command")?;
        Ok(invocation.launch_spec(Path::new(program)))
    }
}

impl Invocation {
    /// Runs `file` as the image's program; a `command` that names another program runs that one of this machine.
    fn launch_spec(&self, file: &Path) -> LaunchSpec {
        let (program, more) = match self.command.split_first() {
            Some((name, more)) if Path::new(name).file_name() == file.file_name() => (file.to_owned(), more),
            Some((name, more)) => (PathBuf::from(name), more),
            None => (file.to_owned(), &[][..]),
        };
        let mut command = Command::new(program);
        command.args(more).args(&self.args);
        LaunchSpec { command, termination_grace: Duration::ZERO }
    }
}

/// Returns the names that an image may be registered under: without tag and digest, and without registry and path too.
fn image_names(image: &str) -> [&str; 2] {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let (folders, last) = image.rsplit_once('/').map_or(("", image), |(folders, last)| (folders, last));
    let last = last.split_once(':').map_or(last, |(name, _)| name);
    let whole = if folders.is_empty() { last } else { image.get(..=folders.len() + last.len()).unwrap_or(image) };
    [whole, last]
}

impl fmt::Debug for ImagePrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_image.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_found_without_tag_digest_and_registry() {
        for (image, expected) in [
            ("rollora-sidecar", ["rollora-sidecar", "rollora-sidecar"]),
            ("rollora-sidecar:0.1", ["rollora-sidecar", "rollora-sidecar"]),
            ("localhost:5000/a/rollora-sidecar:0.1", ["localhost:5000/a/rollora-sidecar", "rollora-sidecar"]),
            ("vllm/vllm-openai:v0.32.0@sha256:00", ["vllm/vllm-openai", "vllm-openai"]),
        ] {
            assert_eq!(image_names(image), expected, "{image}");
        }
    }

    fn run(command: &[&str]) -> Invocation {
        Invocation {
            pod: "pod".to_owned(),
            address: Ipv4Addr::LOCALHOST,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            args: vec!["--flag".to_owned()],
            env: BTreeMap::new(),
        }
    }

    #[test]
    fn command_of_the_container_replaces_the_image_program() {
        let programs = ImagePrograms::new().with_program("program", Path::new("/built/program"));
        for (command, expected) in [
            (&[][..], &["/built/program", "--flag"][..]),
            (&["/usr/bin/program", "verb"], &["/built/program", "verb", "--flag"]),
            (&["/bin/sh", "-c"], &["/bin/sh", "-c", "--flag"]),
        ] {
            let command = programs.launch("registry/program:1", &run(command)).unwrap().command;
            let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
            assert_eq!(words, expected);
        }
    }

    #[test]
    fn unknown_image_is_rejected_with_the_known_images() {
        let programs = ImagePrograms::new().with_program("program", Path::new("/built/program"));
        let error = programs.launch("other:1", &run(&["/bin/sh"])).unwrap_err().to_string();
        assert!(error.contains("other:1") && error.contains("\"program\""), "{error}");
        programs.launch("host", &run(&[])).unwrap_err();
    }
}
