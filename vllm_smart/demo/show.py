"""The demonstration as a person sees it: both ways side by side, then the trees of one answer."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from vllm_smart.demo.ask import Server
from vllm_smart.demo.compare import Pair, ask_both_ways, overall_speedup, tokens_per_s
from vllm_smart.demo.draw import answer_with_paths, drawn_steps, wait_for_steps
from vllm_smart.demo_model import held_out_prompts

_NUM_LONG = 16  # of the held-out prompts, at their beginning
_SHOWN_CHARS = 32


def show(
    server: Server, num_prompts: int, max_tokens: int, trace: Path, num_trees: int, console: Console
) -> None:
    """Ask prompts both ways, print tokens per second and the ratio, and draw trees.

    Args:
        server: to ask.
        num_prompts: pieces of Python that the shipped pair was not trained on.
        max_tokens: of each answer.
        trace: that the server writes.
        num_trees: most trees drawn.
        console: to print to.

    Raises:
        SmartError: the server cannot be had, or its trace cannot be read.
    """
    prompts = held_out_prompts()[_NUM_LONG:][: num_prompts + 1]
    server.ask(prompts[-1], max_tokens, speculates=True)  # for the drafter to be known a little
    pairs: list[Pair] = []
    console.print(
        f"Each of {num_prompts} prompts is continued by {max_tokens} tokens, with and without "
        f"speculation in turns, by the model {server.model!r}. Tokens per second:\n"
    )
    for pair, prompt in zip(ask_both_ways(server, prompts[:-1], max_tokens), prompts, strict=False):
        pairs.append(pair)
        console.print(_line(pair, prompt), highlight=False, markup=False)
    console.print(_summary(pairs))
    if not trace.is_file():  # of a server that `serve-demo` has not started
        console.print(f"The server writes no trace to {trace}: no trees are drawn.")
        return
    offset = trace.stat().st_size
    answer = server.ask(prompts[-1], max_tokens, speculates=True)
    steps = wait_for_steps(trace, offset, answer.request)
    if not any(step.num_nodes for step in steps):
        console.print(f"The trace {trace} has no trees of the last answer: nothing is drawn.")
        return
    num_guessed = sum(len(step.verified.accepted) for step in steps)
    console.print(
        f"\nOne more answer: {answer.num_tokens} tokens in {len(steps)} steps of the target, "
        f"{num_guessed} of them guessed. ✔ is the accepted path; the percentages are how likely the "
        "path to a guess was thought to be accepted.\n"
    )
    console.print(drawn_steps(steps, num_trees, server.text_of), highlight=False)
    console.print("\nThe answer, guessed tokens in green, the target's own in blue:\n")
    console.print(answer_with_paths(steps, server.text_of), highlight=False)


def _line(pair: Pair, prompt: str) -> str:
    beginning = " ".join(prompt.split())[:_SHOWN_CHARS]
    same = "same text" if pair.is_same_text else "OTHER TEXT"
    return (
        f"  without {pair.plain.tokens_per_s:6.1f}   with {pair.speculating.tokens_per_s:6.1f}   "
        f"{pair.speedup:4.2f}x   {same}   {beginning}"
    )


def _summary(pairs: list[Pair]) -> Table:
    table = Table(title=f"\n{len(pairs)} prompts", title_justify="left")
    for column in ("", "tokens/s"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("without speculation", f"{tokens_per_s([p.plain for p in pairs]):.1f}")
    table.add_row("with speculation", f"{tokens_per_s([p.speculating for p in pairs]):.1f}")
    table.add_row("ratio", f"{overall_speedup(pairs):.2f}")
    table.add_row("same texts", f"{sum(p.is_same_text for p in pairs)} of {len(pairs)}")
    return table
