//! What runs in place of an image: there are no images here, only programs of this machine.

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

/// The image whose containers run a command of this machine, which they have to name.
pub const HOST_IMAGE: &str = "host";

/// Makes the process of a container.
pub type ProcessFactory = Arc<dyn Fn(&Invocation) -> Result<LaunchSpec> + Send + Sync>;

/// What a container wants to run, ready but for the program: variables are filled in, paths are those of this machine.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The pod's name.
    pub pod: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Instead of the image's own program.
    pub command: Vec<String>,
    /// The arguments.
    pub args: Vec<String>,
    /// The environment, nothing else will be in it.
    pub env: BTreeMap<String, String>,
}

/// The process of a container.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Its command; the environment is added to it.
    pub command: Command,
    /// How long it may take to clean up when the bed ends.
    pub termination_grace: Duration,
}

/// Which program stands for which image.
#[derive(Clone, Default)]
pub struct ImagePrograms {
    by_image: BTreeMap<String, ProcessFactory>,
}

impl ImagePrograms {
    /// None but [`HOST`].
    pub fn new() -> Self {
        Self::default()
    }

    /// This file stands for `image`.
    #[must_use]
    pub fn with_program(self, image: &str, file: &Path) -> Self {
        let file = file.to_owned();
        self.with_factory(image, Arc::new(move |run| Ok(run.launch_spec(&file))))
    }

    /// What this makes stands for `image`.
    #[must_use]
    pub fn with_factory(mut self, image: &str, maker: ProcessFactory) -> Self {
        self.by_image.insert(image.to_owned(), maker);
        self
    }

    /// The process of a container with this image.
    pub(super) fn launch(&self, image: &str, invocation: &Invocation) -> Result<LaunchSpec> {
        let known = |name: &&str| self.by_image.contains_key(*name);
        let name = image_names(image).into_iter().find(known);
        if let Some(maker) = name.and_then(|name| self.by_image.get(name)) {
            return maker(invocation);
        }
        let stands_for_host = image_names(image).contains(&HOST_IMAGE);
        anyhow::ensure!(stands_for_host, "no program stands for the image {image:?}: {:?}", self.by_image.keys());
        let program = invocation.command.first().context("the image `host` has no program of its own")?;
        Ok(invocation.launch_spec(Path::new(program)))
    }
}

impl Invocation {
    /// `file` in place of the image's program; a `command` that names another one is that of this machine.
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

/// The names by which an image can be known: without tag and digest, and that without its registry and folders.
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
    fn an_image_is_known_by_its_name_without_tag_digest_and_registry() {
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
    fn a_command_of_the_container_is_run_instead_of_the_image_s_own() {
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
    fn an_image_that_nothing_stands_for_is_refused_and_what_is_known_is_said() {
        let programs = ImagePrograms::new().with_program("program", Path::new("/built/program"));
        let said = programs.launch("other:1", &run(&["/bin/sh"])).unwrap_err().to_string();
        assert!(said.contains("other:1") && said.contains("\"program\""), "{said}");
        programs.launch("host", &run(&[])).unwrap_err();
    }
}
