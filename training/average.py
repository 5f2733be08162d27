"""Averages the weights of checkpoints of one run, which is better than either: stochastic weight
averaging (Izmailov et al., arXiv 1803.05407)."""

import argparse
from pathlib import Path

import torch

from training.model import Llama, load_llama, save_llama


def average(folders: list[Path]) -> Llama:
    """Returns a model whose every tensor is the mean over the checkpoints."""
    models = [load_llama(folder) for folder in folders]
    states = [model.state_dict() for model in models]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    models[0].load_state_dict(mean)
    return models[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="checkpoints of the target")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    save_llama(average(arguments.folders), arguments.out)


if __name__ == "__main__":
    main()
