"""Runs a campaign and writes what came of it.

    OMP_NUM_THREADS=1 python -m tests.fuzz --configurations 1000 --engines 125 --requests 80 \\
        --seconds 7200 --out docs/results/fuzz.json
"""

import argparse
import json
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz import campaign


def main() -> None:
    """Parse, run, write; the exit status is 1 if there were faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configurations", type=int, default=1000, help="checked, not started")
    parser.add_argument("--engines", type=int, default=125, help="most engines started")
    parser.add_argument("--requests", type=int, default=80, help="of each engine")
    parser.add_argument("--seconds", type=float, default=7200.0, help="start no engine later")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {}

    def keep(so_far: campaign.Campaign) -> None:
        report.update(seed=args.seed, **asdict(so_far))
        if args.out is not None:
            args.out.write_text(_without_folders(json.dumps(report, indent=1, default=str)) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        result = campaign.run(
            *(Path(folder), args.seed, args.configurations, args.engines, args.requests, args.seconds),
            keep=keep,
        )
    keep(result)
    print(json.dumps({**report, "faults": len(result.faults)} if args.out else report, indent=1))
    sys.exit(bool(result.faults))


def _without_folders(text: str) -> str:
    """A published report without the folders of the machine that wrote it."""
    text = re.sub(r"/[^\s'\"]*/site-packages/", "", text).replace(f"{Path.cwd()}/", "")
    return re.sub(re.escape(tempfile.gettempdir()) + r"/[^/\s'\"]+/", "", text)


if __name__ == "__main__":
    main()
