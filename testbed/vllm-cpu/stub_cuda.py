"""Make empty stand-ins for the CUDA libraries that torch's registry wheel is linked against.

usage: venv/bin/python stub_cuda.py   (with the Python whose torch is meant; needs a C compiler and readelf)

With them torch imports on a machine with no GPU and without gigabytes of CUDA packages. Every function of a stand-in
answers 100, which is CUDA's "no device", so torch.cuda.is_available() is False and all work is done by the CPU.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

SITE_PACKAGES = pathlib.Path(sysconfig.get_paths()["purelib"])
TORCH = SITE_PACKAGES / "torch" / "lib"
# Where torch looks for each library, under site-packages/nvidia; "cu13" for those that are not named here.
FOLDERS = {
    "libcudnn.so.9": "cudnn",
    "libnccl.so.2": "nccl",
    "libnvshmem_host.so.3": "nvshmem",
    "libcusparseLt.so.0": "cusparselt",
}
# Which library a symbol belongs to, by how its name begins; the first that fits.
OWNERS = [
    ("cublasLt", "libcublasLt.so"),
    ("cublas", "libcublas.so"),
    ("cudnn", "libcudnn.so"),
    ("cusparseLt", "libcusparseLt.so"),
    ("cusparse", "libcusparse.so"),
    ("cusolver", "libcusolver.so"),
    ("cufft", "libcufft.so"),
    ("cuFile", "libcufile.so"),
    ("curand", "libcurand.so"),
    ("nccl", "libnccl.so"),
    ("pnccl", "libnccl.so"),
    ("nvshmem", "libnvshmem_host.so"),
    ("nvrtc", "libnvrtc.so"),
    ("cupti", "libcupti.so"),
    ("cuda", "libcudart.so"),
    ("__cuda", "libcudart.so"),
    ("cu", "libcuda.so"),
]
# Versions of symbols that come from the C and C++ libraries, not from CUDA.
SYSTEM_VERSIONS = ("GLIBC", "GCC", "CXXABI", "GOMP", "OMP", "GNU")
# Asked for by libcaffe2_nvrtc alone, which nothing loads where there is no GPU.
UNUSED = "libcuda.so.1"


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=True).stdout


def scan(files):
    """The libraries that the files need, the symbols that they define, and those that they want."""
    needed, defined, wanted = set(), set(), set()
    for file in files:
        needed |= set(re.findall(r"\(NEEDED\).*\[(.+?)\]", readelf("-d", file)))
        for line in readelf("--dyn-syms", file).splitlines():
            # Num: Value Size Type Bind Vis Ndx Name [(version number)]
            fields = line.split()
            if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
                continue
            bind, section, name = fields[4], fields[6], fields[7]
            if section != "UND":
                defined.add(name.partition("@")[0])
            elif bind == "GLOBAL":
                wanted.add(name)
    return needed, defined, wanted


def owner(symbol, missing):
    for prefix, library in OWNERS:
        if symbol.startswith(prefix) or (prefix == "nvshmem" and prefix in symbol):
            return [name for name in missing if name.startswith(library + ".")]
    return []


def share_out(wanted, defined, missing):
    """For each missing library, its symbols, each with its version ("" for none)."""
    symbols = {library: {} for library in missing}
    for entry in sorted(wanted):
        name, _, version = entry.partition("@")
        version = version.lstrip("@")
        if name in defined or version.startswith(SYSTEM_VERSIONS):
            continue
        for library in owner(name, missing):
            symbols[library][name] = version
    return symbols


def compile_stub(compiler, library, symbols):
    if library in FOLDERS:
        folder = SITE_PACKAGES / "nvidia" / FOLDERS[library] / "lib"
    else:
        folder = SITE_PACKAGES / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = pathlib.Path(scratch, "stub.c")
        source.write_text("".join(f"int {name}(void){{return 100;}}\n" for name in symbols))
        flags = ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
        versions = sorted(set(symbols.values()) - {""})
        if versions:
            script = pathlib.Path(scratch, "versions.map")
            script.write_text(
                "".join(
                    f"{version} {{ global: {'; '.join(n for n, v in symbols.items() if v == version)}; }};\n"
                    for version in versions
                )
            )
            flags.append(f"-Wl,--version-script={script}")
        subprocess.run([compiler, *flags, "-o", str(folder / library), str(source)], check=True)


def main():
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or not shutil.which("readelf"):
        sys.exit("a C compiler and readelf are needed (packages gcc and binutils)")
    files = sorted(TORCH.glob("*.so*"))
    needed, defined, wanted = scan(files)
    absent = needed - {file.name for file in files} - {UNUSED}
    missing = sorted(name for name in absent if re.match(r"lib(cu|nv|nccl)", name))
    for library, symbols in share_out(wanted, defined, missing).items():
        compile_stub(compiler, library, symbols)
        print(library, len(symbols), "symbols")


if __name__ == "__main__":
    main()
