"""Energy of the processor packages, where the kernel lets us read it (RAPL)."""

from collections.abc import Sequence
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


def read_energy_j(powercap: Path = _POWERCAP) -> float | None:
    """Joules that all processor packages have used since some moment; None where unreadable.

    Args:
        powercap: the kernel's folder of counters.
    """
    try:
        packages = [folder for folder in powercap.glob("intel-rapl:*") if folder.name.count(":") == 1]
        micro_j = [int((folder / "energy_uj").read_text()) for folder in packages]
    except (OSError, ValueError):
        return None
    return sum(micro_j) / 1e6 if micro_j else None


def used_j(before_j: float | None, after_j: float | None) -> float | None:
    """Joules between two readings; None where unknown, also when a counter began anew meanwhile."""
    if before_j is None or after_j is None or after_j < before_j:
        return None
    return after_j - before_j


def sum_j(parts: Sequence[float | None]) -> float | None:
    """Joules of several parts together; None where any is unknown."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
