"""What a simulated engine drafts, step by step."""

import numpy as np

from tests.unit.simulate.small import CONFIG
from vllm_smart.profiling import NO_CONTEXT, CostSamples, CostTable, StepShape
from vllm_smart.scheduler import StepLoad
from vllm_smart.simulate.drafting import Emitting, Speculation
from vllm_smart.simulate.known_pairs import of_number

PROMPT = 200
# A step: 10 ms and 1 ms per row. The drafter: 1 ms and 0.1 ms per row, so a prompt takes two steps.
TABLE = CostTable(CostSamples(verify=((1, 11.0), (1001, 1011.0)), draft=((1, 1.1), (1001, 101.1))))


def nodes_after(*chunks: tuple[int, int]) -> int:
    """Draft nodes of a request whose prompt was computed from one position to another in each step."""
    policy = CONFIG.policy.model_copy(update={"beside_prompts": "draft"})
    engine = Speculation(
        CONFIG.model_copy(update={"policy": policy}),
        TABLE,
        of_number(0.7, 0),
        1,
        2048,
        16,
        sees_arrivals=True,
        seed=0,
    )
    engine.add_request(0)
    for start, end in chunks:
        of = Emitting(
            slots=np.zeros(1, np.int64),
            requests=np.zeros(1, np.int64),
            start=np.array([start]),
            root=np.array([end - 1]),
            end=np.array([end]),
            emits=np.array([end == PROMPT]),
            tokens_left=np.array([100]),
        )
        engine.begins(0.0, StepShape(end - start, NO_CONTEXT, 1, False), True, True)
        drafted, num_nodes = engine.propose(of, StepLoad(int(end == PROMPT)), np.array([end - start]))
        assert drafted.num_read == end - start
    return int(num_nodes[0])


def test_what_is_verified_does_not_depend_on_how_much_of_a_prompt_was_read():
    # Charged for a prompt that is read anyway, a step would verify whatever there is.
    assert nodes_after((0, PROMPT)) == nodes_after((0, PROMPT - 1), (PROMPT - 1, PROMPT)) < 8
