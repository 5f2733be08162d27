"""A candidate source and a placement of one's own, through the protocols alone: trees stay lossless.

    python -m tests.e2e.test_own_source RESULT.json

The source repeats recorded text: what plain decoding has said, each token after a wrong one.
The placement grows in another thread.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vllm_smart.proposer import CandidatePool, Candidates, Frontier, GrowthWork, grow

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).parents[2]
NUM_PROMPTS, NUM_TOKENS, WRONG = 6, 40, 5


class RepeatedText:
    """Knows how each request goes on, as far as its text has stood in the record."""

    name, is_one_shot = "text", False

    def __init__(self, context, record: dict[tuple[int, ...], list[int]]) -> None:
        slots, states = context.step.slots, context.reading.req_states
        self.rest: list[list[int]] = []
        for slot, end in zip(
            slots.tolist(), context.step.result.end[context.step.drafting].tolist(), strict=True
        ):
            known = tuple(
                states.all_token_ids.gpu[slot, : end + 1].tolist()
            )  # the bonus token included
            text = next((t for p, t in record.items() if known[: len(p)] == p), [])
            prompt_len = next((len(p) for p in record if known[: len(p)] == p), 0)
            said = len(known) - prompt_len
            self.rest.append(text[said:] if text[:said] == list(known[prompt_len:]) else [])

    def expand(self, pool: CandidatePool, frontier: Frontier) -> int:
        if not len(frontier.req):
            return 0
        depth = pool.candidates.depth[frontier.req, frontier.node]
        is_right = pool.candidates.rank[frontier.req, frontier.node] == 1
        is_right |= frontier.node == 0
        token = np.full((len(depth), 2), WRONG, np.int64)
        prob = np.zeros((len(depth), 2), np.float32)
        for row, (req, level, right) in enumerate(zip(frontier.req, depth, is_right, strict=True)):
            rest = self.rest[req]
            if right and level < len(rest) and rest[level] != WRONG:
                # The wrong one ranks first, so that what is right has to be moved.
                token[row], prob[row] = (WRONG, rest[level]), (0.5, 0.45)
        pool.add_children(frontier.req, frontier.node, token, prob, source=7)
        return len(frontier.req)


class InThread:
    """Grows in another thread; the step waits when it collects."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(1)
        self.num_collected = 0

    def submit(self, work: GrowthWork) -> tuple[Future, GrowthWork]:
        done = self.threads.submit(
            grow, work.pool, work.source, work.grows, work.bounds, work.decisions
        )
        return done, work

    def collect(self, ticket: tuple[Future, GrowthWork]) -> Candidates:
        done, work = ticket
        done.result()
        self.num_collected += 1
        return work.pool.candidates


def main(result: Path) -> None:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_USE_V2_MODEL_RUNNER="1")
    from vllm import LLM, SamplingParams

    from tests.e2e import controls, scenarios

    sizes = {"max_num_seqs": 4, "max_num_batched_tokens": 256, "max_model_len": 512}
    base = {"model": scenarios.job("plain")["engine"]["model"], "dtype": "float32", **sizes}
    base |= {"enforce_eager": True, "gpu_memory_utilization": 0.2, "seed": 0}
    prompts = [{"prompt_token_ids": p[:60]} for p in scenarios.prompts()[-NUM_PROMPTS:]]
    params = [
        SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=NUM_TOKENS, ignore_eos=True)
        for i in range(NUM_PROMPTS)
    ]

    def texts(llm: LLM) -> list[list[int]]:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    plain = texts(LLM(**base))
    policy = {"name": "fixed_tree", "num_nodes": 10, "depth": 5, "width": 3, "children": 2}
    llm = LLM(**base, **scenarios.with_trees("eagle3", policy))
    watch = controls.AcceptanceWatch.attach(llm)
    record = {tuple(p["prompt_token_ids"]): text for p, text in zip(prompts, plain, strict=True)}
    growth, placement = controls.model_runner(llm).speculator.drafting.on_host, InThread()
    growth.make_source = lambda context: RepeatedText(context, record)
    growth.placement = placement
    ours = texts(llm)
    report = {"plain": plain, "ours": ours, **watch.summary(), "collected": placement.num_collected}
    result.write_text(json.dumps(report))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict:
    result = tmp_path_factory.mktemp("own") / "result.json"
    command = [sys.executable, "-m", "tests.e2e.test_own_source", str(result)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(result.read_text())


def test_its_trees_are_lossless(run):
    assert run["ours"] == run["plain"]


def test_its_candidates_are_what_is_verified(run):
    # What is right ranks second, and is right but for the few times that it is the wrong token.
    assert run["accepted_by_rank"].keys() == {"1"}
    assert run["num_accepted"] > 0.6 * NUM_PROMPTS * NUM_TOKENS
    assert run["num_moved"] > 50
    assert run["collected"] > 5


if __name__ == "__main__":
    main(Path(sys.argv[1]))
