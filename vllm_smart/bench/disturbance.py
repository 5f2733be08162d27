"""Whether something else took the machine's cores while a suite ran."""

from vllm_smart.bench.records import Record, Results

# Of a run's time that its threads may wait for a core. They wait for the suite's own engines, too: each
# uses a little of a core while another has its turn.
_MOST_WAITING = 0.10
_MOST_LEFT_OUT = 1 / 3  # of the side-by-side runs


def undisturbed(results: Results) -> tuple[list[Record], str | None]:
    """The records to compare arms by, and what was left out, in words; None = nothing.

    A side-by-side run in which threads waited long for a core says less than others, whoever won it.
    Where many did, the whole machine was busy: all count, and `disturbance` warns.
    """
    heats: dict[tuple[str, str, int, int, int], list[Record]] = {}
    for record in results.records:
        place = record.drafter, record.workload, record.batch_size, record.repeat, record.heat
        heats.setdefault(place, []).append(record)
    quiet = [heat for heat in heats.values() if (_waiting(heat) or 0.0) <= _MOST_WAITING]
    num_left_out = len(heats) - len(quiet)
    if not num_left_out or num_left_out > _MOST_LEFT_OUT * len(heats):
        return results.records, None
    return [record for heat in quiet for record in heat], (
        f"{num_left_out} of {len(heats)} side-by-side runs {'was' if num_left_out == 1 else 'were'} "
        f"left out, because threads waited for a core during more than {_MOST_WAITING:.0%} of the time"
    )


def disturbance(results: Results) -> str | None:
    """What the machine was busy with besides the suite, in words; None if it was quiet.

    Told by how long the engines' threads stood ready without a core. Where the kernel does not tell,
    and for servers, by the load average.
    """
    records, _ = undisturbed(results)
    share = _waiting(records)
    if share is not None and share > _MOST_WAITING:
        return f"threads waited for a core during {share:.0%} of the time"
    loads = [record.load_1m for record in records if record.run.waited_s is None]
    loads += [record.load_1m for record in results.serving]
    cores = results.environment["cores"]
    if loads and max(loads) > cores + 1:
        return f"load average up to {max(loads):.1f} on {cores} cores"
    return None


def _waiting(records: list[Record]) -> float | None:
    """Share of their time that threads stood ready without a core; None where nothing is known."""
    known = [record.run for record in records if record.run.waited_s is not None]
    if not known:
        return None
    return sum(run.waited_s or 0.0 for run in known) / sum(run.step_end_s[-1] for run in known)
