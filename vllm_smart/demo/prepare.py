"""What a person sees before the demonstration's server starts: what is made, why, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from vllm_smart.demo.size import Sized, load_sized, save_sized, sized_for_this_machine
from vllm_smart.demo.start import ServeCommand, check_disk, check_port, demo_folder, serve_command
from vllm_smart.demo_model.kept import kept_pair, kept_pair_folder


def prepare(port: int, anew: bool, further: Sequence[str], console: Console) -> ServeCommand:
    """Make the pair that suits this machine, unless it is there, and the command that serves it.

    Args:
        port: to listen on.
        anew: time the machine again, instead of taking the size that was chosen before.
        further: arguments of `vllm serve`.
        console: to print to.

    Raises:
        SmartError: the pair cannot be made here.
        OSError: as above, for reasons of the disk.
    """
    check_port(port)
    sized = sized_once(anew, console)
    folders = made(sized, console)
    command = serve_command(
        folders, sized.shape.dtype, port, on_gpu=torch.cuda.is_available(), further=further
    )
    console.print(f"Serving it with\n\n  {command}\n", soft_wrap=True, highlight=False, markup=False)
    return command


def sized_once(anew: bool, console: Console) -> Sized:
    """How large the pair is that suits this machine; chosen once, and kept.

    Args:
        anew: time the machine again.
        console: to print to.
    """
    path = demo_folder() / "size.json"
    sized = None if anew else load_sized(path)
    if sized is None:
        console.print("Timing how fast this machine reads weights ...")
        sized = sized_for_this_machine()
        save_sized(path, sized)
    console.print(
        f"Weights are read at {sized.gb_per_s:.0f} GB/s in {sized.shape.dtype}, and four tokens take "
        f"{sized.tree_rows_cost:.1f} times as long as one: a target of {sized.shape.num_layers} layers "
        f"suits this machine. It takes {sized.num_bytes / 1e9:.1f} GB of disk with its drafters."
    )
    return sized


def made(sized: Sized, console: Console) -> dict[str, Path]:
    """The folders of the pair of this size, by kind; it is made unless it is there.

    Args:
        sized: how large.
        console: to print to.

    Raises:
        SmartError, OSError: as `prepare`.
    """
    folder = kept_pair_folder(demo_folder(), sized.shape)
    if folder.is_dir():
        console.print(f"It is in {folder} already.", soft_wrap=True)
        folders: dict[str, Path] = kept_pair(demo_folder(), sized.shape)
        return folders
    check_disk(demo_folder(), sized.num_bytes)
    console.print(f"Making it, once, in {folder}.", soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("writing weights")
        folders = kept_pair(
            demo_folder(),
            sized.shape,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    return folders
