"""See the package: `python -m benchmarks.coverage`."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.coverage.cases import TARGETS
from benchmarks.coverage.page import page
from benchmarks.coverage.serve import ROOT, measure


def main() -> None:
    """Measure what has not been, then write the page from all results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/coverage")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/coverage.md")
    args = parser.parse_args()
    if unknown := set(args.targets) - TARGETS.keys():
        parser.error(f"no such target: {unknown.pop()}. There are: {', '.join(TARGETS)}.")
    args.results.mkdir(parents=True, exist_ok=True)
    stored = {name: args.results / f"{name.replace(' ', '-')}.json" for name in TARGETS}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.targets or TARGETS:
            if stored[name].exists():
                continue
            try:
                rows = measure(name, Path(folder))
            except RuntimeError as error:  # the others can be measured all the same
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed.append(name)
                continue
            stored[name].write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows), flush=True)
    rows = [row for file in stored.values() if file.exists() for row in json.loads(file.read_text())]
    args.page.write_text(page(rows))
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
