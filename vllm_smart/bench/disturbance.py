"""Whether something else took the machine's cores while a suite ran."""

from vllm_smart.bench.records import Results

# Of a run's time that its threads may wait for a core. They wait for the suite's own engines, too: each
# takes about 2% of a core while another has its turn.
_MOST_WAITING = 0.10


def disturbance(results: Results) -> str | None:
    """What the machine was busy with besides the suite, in words; None if it was quiet.

    Told by how long the engines' threads stood ready without a core. Where the kernel does not tell,
    and for servers, by the load average.
    """
    known = [record.run for record in results.records if record.run.waited_s is not None]
    if known:
        waited_s = sum(run.waited_s or 0.0 for run in known)
        share = waited_s / sum(run.step_end_s[-1] for run in known)
        if share > _MOST_WAITING:
            return f"threads waited for a core during {share:.0%} of the time"
    loads = [record.load_1m for record in results.records if record.run.waited_s is None]
    loads += [record.load_1m for record in results.serving]
    cores = results.environment["cores"]
    if loads and max(loads) > cores + 1:
        return f"load average up to {max(loads):.1f} on {cores} cores"
    return None
