"""What the end-to-end tests run: prompts, sampling parameters and engines."""

import json
from functools import cache

from tests.tool_calls.schemas import schemas
from vllm_smart.demo_model import demo_model_paths, held_out_prompts
from vllm_smart.profiling import CostSamples, TableKey
from vllm_smart.profiling.store import SCHEMA

METHODS = ("draft_model", "eagle", "eagle3")
# Without a drafter, and with n-grams beside one: all scenarios, and a few.
NGRAM_METHODS, MIXED_METHODS = ("ngram", "eagle3+ngram"), ("draft_model+ngram", "eagle+ngram")
NUM_REQUESTS, NUM_TOKENS = 40, 128

# Branching trees of a fixed size: every mechanism works at every step, whatever the costs.
TREE = {"node_budget": 16, "depth": 5, "width": 4, "children": 4}
CHAIN = {"name": "chain", "num_tokens": 5}
FIXED_TREE = {"name": "fixed_tree", "num_nodes": 12, "depth": 5, "width": 4, "children": 4}
SMALL_TREE = {"name": "fixed_tree", "num_nodes": 6, "depth": 3, "width": 2, "children": 3}

# Comfortable, with joins and leaves: 40 requests over 16 seats; prefix caching and chunked prefill on.
ROOMY = {"max_num_seqs": 16, "max_num_batched_tokens": 512, "max_model_len": 1024}
# A tight token budget, a short context, and so few KV blocks that requests are preempted.
TIGHT = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "max_model_len": 256,
    "num_gpu_blocks_override": 8,
}
SMALL_BLOCKS = {"block_size": 32, "num_gpu_blocks_override": 32}  # as much, so that prompts fill some
# What Triton's interpreter gets through; two of the requests join while the others have trees.
TINY = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "max_model_len": 128, "block_size": 32}
TINY_RUNS = ("greedy", "repetition")
REPEATING = "greedy after prompts that repeat themselves"
COUPLED_RUN = "temperature"  # whose trees a device grows as the host does; it knows no penalties
# Many short samples of one prompt.
MANY = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "max_model_len": 256}
NUM_SAMPLES, SAMPLES_PER_REQUEST = 10240, 512

# Requests end by their length unless a run is about ending: more text, and more of it differs.
GREEDY = {"temperature": 0.0, "ignore_eos": True}
SAMPLED = {"temperature": 0.8, "ignore_eos": True}
SAMPLING = {
    "greedy": GREEDY,
    "greedy again": GREEDY,  # every prompt's blocks are cached by now
    "temperature": SAMPLED,
    "top_p": {**SAMPLED, "top_p": 0.9},
    "top_k": {**SAMPLED, "temperature": 1.0, "top_k": 20},
    "repetition": {**SAMPLED, "repetition_penalty": 1.3},
    "presence and frequency": {**GREEDY, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    "logprobs": {**SAMPLED, "logprobs": 5},
    "prompt logprobs": {**GREEDY, "prompt_logprobs": 2},
    "bad words": {**GREEDY, "bad_words": ["self", "return", " the"]},
    "min tokens": {"temperature": 0.8, "min_tokens": 24},
    "allowed ids": {**SAMPLED, "allowed_token_ids": list(range(5, 700))},
    "stop string": {"temperature": 0.0, "stop": ["\n\n", "def "]},
    "stop ids": {"temperature": 0.0, "stop_token_ids": [12, 13, 270]},
    "two samples": {**SAMPLED, "n": 2},
}
# Ends by itself.
GRAMMAR = {
    "temperature": 0.0,
    "structured_outputs": {"regex": r"(self|other)(\.[a-z]{2,9}){1,5} = [0-9]{1,9}"},
}
# Temperatures with what else shapes a distribution, all of it in one batch beside greedy requests.
AT_TEMPERATURES, TEMPERATURES = "temperatures", (0.0, 0.3, 0.8, 1.0, 1.3)
SHAPES = (
    {},
    {"top_k": 20},
    {"top_p": 0.9},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
)
LONG_RUNS = ("greedy", "greedy again", "temperature")  # of all requests
SHORT_RUNS, SHORT_TOKENS = 12, 80  # requests of the other ones, and the most that each emits
# Greedy and sampled calls of tools. Small models would put in spaces without end.
# Of a model that reasons until its first line ends.
REASONING = """
from vllm.reasoning import ReasoningParser, ReasoningParserManager


@ReasoningParserManager.register_module("a_line")
class ALine(ReasoningParser):
    def is_reasoning_end(self, input_ids):
        return False

    def is_reasoning_end_streaming(self, input_ids, delta_ids):
        return any("\\n" in self.model_tokenizer.decode([token]) for token in delta_ids)

    def extract_content_ids(self, input_ids):
        ends = (i for i, token in enumerate(input_ids) if "\\n" in self.model_tokenizer.decode([token]))
        return input_ids[next(ends, len(input_ids)) + 1 :]

    def extract_reasoning(self, model_output, request):
        reasoning, _, content = model_output.partition("\\n")
        return reasoning, content.lstrip() or None

    def extract_reasoning_streaming(self, previous, current, delta, *ids):
        from vllm.entrypoints.generate.base.protocol import DeltaMessage

        if "\\n" in previous:
            return DeltaMessage(content=delta)
        reasoning, _, content = delta.partition("\\n")
        return DeltaMessage(reasoning=reasoning, content=content.lstrip() or None)
"""
JSON, JSON_LISTS = "json", "json lists"
NUM_TOOLS, COMPACT = 12, {"backend": "xgrammar", "disable_any_whitespace": True}
JOINS = "one token joins"  # requests of one token, which vLLM pads with drafts that they do not have
PADDED = "padding for drafts"
CONTROLS = {
    "no compaction": "greedy",
    "no depth positions": "greedy",
    "causal mask": "greedy",
    "noise by index": "temperature",
    "no path history": "presence and frequency",
}
TINY_CONTROLS = ("causal mask on the device", "no compaction")
GRAPH_CONTROLS = ("stale masks", "no depth positions on the device")
TINY_CHECKS = ("drafts padded", "no waiting")  # which change nothing
AHEAD_CHECKS, AHEAD_CONTROLS = ("no waiting before a forward",), ("causal mask on the device",)
# Of requests that sample.
UNCOUPLED, NOISE_CONTROL = "candidates not coupled", "noise of the next position"
# What a drafter loses is a few per cent, so these have all requests. All prompts are cached in them.
WHOLE = "greedy again"
DRAFTER_CONTROLS = ("rows not permuted", "draft levels see all", "rests and forgets")
GRAMMAR_CONTROLS = ("drafts know no grammars", "grammars one token behind")
BEGINS_ANEW = "grammars begin anew after a preemption"
NGRAM_CONTROLS = ("ngrams one token behind", "ngrams of the request beside")
RESTS = "rests two steps in three"
DOES_WITHOUT = "does without the drafter two steps in three"
ASYNC_RUNS = (
    *("greedy", "greedy again", "temperature", "repetition", "logprobs", "stop string", "grammar"),
    *("json", "mixed"),
)
ASYNC_CONTROLS = ("positions as scheduled",)
SMART_RUNS = 24  # requests where costs decide; some have to wait for a seat
WAITING_RUNS = 12  # requests of an engine where somebody waits most of the time
IN_PARTS, IN_PARTS_RUNS = "few rows at a time", ("presence and frequency", "logprobs")


@cache
def prompts() -> list[list[int]]:
    """Token ids of the held-out prompts, shortest kind first."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model_paths()["target"])
    return [tokenizer.encode(text) for text in held_out_prompts()]


def _params(name: str, index: int) -> dict:
    params = {"max_tokens": NUM_TOKENS if name in LONG_RUNS else SHORT_TOKENS}
    params |= GRAMMAR if name == "grammar" else SAMPLING[name]
    if params["temperature"] > 0:
        params["seed"] = 1000 + index
    return params


def sampling_run(name: str, count: int, control: str | None = None, max_len: int = 1024) -> dict:
    """One run: `count` prompts under the sampling parameters called `name`."""
    chosen = [p for p in prompts() if len(p) < max_len - NUM_TOKENS][:count]
    return {
        "name": control or name,
        "prompts": chosen,
        "params": [_params(name, i) for i in range(len(chosen))],
        "control": control,
    }


def _sampling_runs() -> list[dict]:
    runs = []
    for name in SAMPLING:
        runs.append(sampling_run(name, NUM_REQUESTS if name in LONG_RUNS else SHORT_RUNS))
    return runs


def _joining_run(control: str | None = None) -> dict:
    """The same prompts of one token again and again: a slot's last tree often fits its next request."""
    prompts = [[token] for token in range(5, 15)] * 8
    params = [{**GREEDY, "max_tokens": 2 + index % 5, "prompt_logprobs": 2} for index in range(80)]
    return {"name": control or JOINS, "prompts": prompts, "params": params, "control": control}


def _mixed_run() -> dict:
    """All sampling parameters in one batch."""
    names = [*(name for name in SAMPLING if name != "prompt logprobs"), "grammar"]
    chosen = prompts()[: 2 * len(names)]
    return {
        "name": "mixed",
        "prompts": chosen,
        "params": [_params(names[i % len(names)], i) for i in range(len(chosen))],
    }


def _json_run(control: str | None = None) -> dict:
    """Tool calls: every second one is sampled, and every fourth asks for two answers."""
    return _bound_run(
        control or JSON, prompts()[:NUM_TOOLS], list(schemas(NUM_TOOLS).values()), control
    )


def _json_lists_run(control: str | None = None) -> dict:
    """Lists of calls that are longer than what is decoded, of prompts that fill most of a block.

    So requests need another block while all others hold theirs, and some are preempted.
    """
    tools = schemas(NUM_TOOLS).values()
    lists = [{"type": "array", "items": schema, "minItems": NUM_TOKENS} for schema in tools]
    shortened = [prompt[:100] for prompt in prompts() if len(prompt) >= 100][:NUM_TOOLS]
    return _bound_run(control or JSON_LISTS, shortened, lists, control)


def _bound_run(name: str, chosen: list[list[int]], bound: list[dict], control: str | None) -> dict:
    params = []
    for index, schema in enumerate(bound):
        each = {"max_tokens": NUM_TOKENS, "temperature": 0.8 * (index % 2)}
        if index % 2:
            each |= {"seed": 3000 + index, "n": 1 + index // 2 % 2}
        params.append({**each, "structured_outputs": {"json": json.dumps(schema)}})
    return {"name": name, "prompts": chosen, "params": params, "control": control}


def _temperatures_run(shapes: tuple[dict, ...] = SHAPES) -> dict:
    params = [
        {"temperature": temperature, "ignore_eos": True, "max_tokens": NUM_TOKENS, **shape}
        for shape in shapes
        for temperature in TEMPERATURES
    ]
    for index, each in enumerate(params):
        if each["temperature"] > 0:
            each["seed"] = 2000 + index
    return {"name": AT_TEMPERATURES, "prompts": prompts()[: len(params)], "params": params}


def with_trees(method: str, policy: dict | None = None, model: str | None = None) -> dict:
    """LLM arguments that switch trees on, of "METHOD" or "METHOD+ngram".

    `policy` spares the engine to measure its costs; `model` is another drafter than the shipped one.
    """
    method, _, ngram = method.partition("+")
    if model is None:
        model = "demo:draft" if method == "draft_model" else f"demo:{method}"
    settings = {"drafter": {"method": method, "model": model}, "tree": TREE}
    if method in ("ngram", "mtp"):  # which have no model of their own
        settings["drafter"] = {"method": method}
    if ngram:
        settings[ngram] = {"max_nodes": TREE["node_budget"]}
    if policy is not None:
        settings["policy"] = policy
    proposer = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": TREE["node_budget"]}
    return {"speculative_config": proposer, "additional_config": {"smart": settings}}


def stock_chain(method: str) -> dict:
    """LLM arguments of vLLM's own chain."""
    drafter = demo_model_paths()["draft" if method == "draft_model" else method]
    config = {"method": method, "model": str(drafter), "num_speculative_tokens": CHAIN["num_tokens"]}
    return {"speculative_config": config}


def as_stock_chain(job: dict, runs: list[dict], num_tokens: int = CHAIN["num_tokens"]) -> dict:
    """A job of vLLM's own chains by the drafter of another job, over some of its runs."""
    engine = dict(job["engine"])
    drafter = engine.pop("additional_config")["smart"]["drafter"]
    engine["speculative_config"] = {**drafter, "num_speculative_tokens": num_tokens}
    return {"engine": engine, "runs": [{**run, "policy": None} for run in runs]}


def _twice(run: dict) -> dict:
    """`run` with each request twice, the second of which finds the prompt of the first in the cache."""
    of = {name: [each for each in run[name] for _ in range(2)] for name in ("prompts", "params")}
    return {**run, **of}


def under(policy: dict, runs: list[dict], prefix: str = "") -> list[dict]:
    """`runs` under another policy, with `prefix` before their names."""
    return [{**run, "policy": policy, "name": prefix + run["name"]} for run in runs]


def job(name: str) -> dict:
    """The job of the engine called `name`: "<kind>" or "<kind> <method>"."""
    kind, _, method = name.partition(" ")
    base = {
        "model": str(demo_model_paths()["target"]),
        "dtype": "float32",
        "enforce_eager": True,
        "seed": 0,
        "max_logprobs": 20,
        "structured_outputs_config": COMPACT,
    }
    tight = [
        sampling_run("greedy", NUM_REQUESTS, max_len=TIGHT["max_model_len"] + NUM_TOKENS - 40),
        sampling_run("temperature", 24, max_len=TIGHT["max_model_len"]),
        _json_lists_run(),
    ]
    full = [*_sampling_runs(), sampling_run("grammar", SHORT_RUNS), _mixed_run(), _joining_run()]
    full += [_temperatures_run(), _json_run()]
    by_costs = [sampling_run(name, SMART_RUNS) for name in ("greedy", "temperature")]
    uncoupled = sampling_run("temperature", SHORT_RUNS, UNCOUPLED)
    short_greedy = sampling_run("greedy", SHORT_RUNS)
    broken = [sampling_run(n, SHORT_RUNS, control) for control, n in CONTROLS.items()]
    broken.append(sampling_run("temperature", SHORT_RUNS, NOISE_CONTROL))
    broken += [sampling_run("greedy", NUM_REQUESTS, control) for control in (*DRAFTER_CONTROLS, RESTS)]
    broken.append(_joining_run(PADDED))
    broken += [_json_run(control) for control in GRAMMAR_CONTROLS]
    broken += [
        {**sampling_run(name, SHORT_RUNS, IN_PARTS), "name": f"{name}, {IN_PARTS}"}
        for name in IN_PARTS_RUNS
    ]
    padded = {**_twice(tight[0]), "name": PADDED, "control": PADDED}
    of_ngrams = [sampling_run("greedy", NUM_REQUESTS, control) for control in (*NGRAM_CONTROLS, RESTS)]
    if "+ngram" in method:
        of_ngrams.append(sampling_run("greedy", NUM_REQUESTS, DOES_WITHOUT))
    kinds = {
        "plain": lambda: (ROOMY, full),
        "plain-tight": lambda: (TIGHT, tight),
        "plain-bf16": lambda: ({**ROOMY, "dtype": "bfloat16"}, [_bf16_run()]),
        "tree": lambda: (
            {**ROOMY, **with_trees(method)},
            under(FIXED_TREE, full + (broken if method == "eagle3" else []))
            + under(FIXED_TREE, [short_greedy], "short ")
            + under(CHAIN, [{**short_greedy, "control": "draft past the end"}], "chain ")
            + under({"name": "smart"}, [*by_costs, _json_run()], "smart ")
            + under(CHAIN, [_json_run()], "chain ")
            + (under(FIXED_TREE, [uncoupled]) if method in METHODS else [])
            + (under(FIXED_TREE, of_ngrams) if "ngram" in method else []),
        ),
        # The target drafts for itself. It rounds no otherwise, so nothing but the draft can be wrong.
        "itself": lambda: (
            {**ROOMY, **with_trees("draft_model", FIXED_TREE, base["model"])},
            [_temperatures_run(SHAPES[:3])],
        ),
        "tree-short": lambda: (
            {**ROOMY, **with_trees(method)},
            under(FIXED_TREE, [_mixed_run(), short_greedy, _json_run()]),
        ),
        "tree-tight": lambda: (
            {**TIGHT, **with_trees(method)},
            under(
                FIXED_TREE,
                tight
                + ([padded] if method == "ngram" else [])
                + ([_json_lists_run(BEGINS_ANEW)] if method == "eagle3" else []),
            ),
        ),
        # Prompts in chunks, from the prefix cache and after preemptions, and most of the time somebody
        # waits; drafting pays where nobody does.
        "tree-waiting": lambda: (
            {**TIGHT, **SMALL_BLOCKS, **_deciding_by_costs(method, may_turn_off=True)},
            [
                _twice(_first(tight[0])),
                _first(tight[1]),
                {**_first(tight[0]), "name": "no compaction", "control": "no compaction"},
            ],
        ),
        # As on GPUs, where vLLM schedules a step before it has looked at the one before.
        "tree-async": lambda: (
            {**ROOMY, **with_trees(method)},
            under(
                FIXED_TREE,
                [run for run in full if run["name"] in ASYNC_RUNS]
                + [sampling_run("greedy", SHORT_RUNS, control) for control in (RESTS, *ASYNC_CONTROLS)],
            )
            + under({"name": "smart"}, [short_greedy], "smart "),
        ),
        "tree-tight-async": lambda: ({**TIGHT, **with_trees(method)}, under(FIXED_TREE, tight)),
        "tree-bf16": lambda: (
            {**ROOMY, "dtype": "bfloat16", **with_trees(method)},
            under(FIXED_TREE, [_bf16_run()]),
        ),
        "plain-reasoning": lambda: ({**ROOMY, **reasons}, [_json_run()]),
        "tree-reasoning": lambda: (
            {**ROOMY, **with_trees(method), **reasons},
            under(FIXED_TREE, [_json_run()]),
        ),
        "plain-many": lambda: (MANY, [_many_run()]),
        "tree-many": lambda: ({**MANY, **with_trees(method)}, under(SMALL_TREE, [_many_run()])),
        "gpu-graphs": lambda: (
            {**TINY, **with_trees(method, SMALL_TREE), "enforce_eager": False},
            [*_tiny_runs(), _tiny_run("greedy", RESTS)],
        ),
        "plain-tiny": lambda: (TINY, [*_tiny_runs(), _repeating_run()]),
        # Texts are looked up on the host, wherever the models run.
        "device-ngrams": lambda: (
            {**TINY, **with_trees(method, SMALL_TREE)},
            [_repeating_run(), _tiny_run("repetition"), _repeating_run(NGRAM_CONTROLS[0])],
        ),
        "host-ngrams": lambda: ({**TINY, **with_trees(method, SMALL_TREE)}, [_repeating_run()]),
        "tree-tiny": lambda: (
            {**TINY, **with_trees(method, SMALL_TREE)},
            [*_tiny_runs(), _tiny_run(COUPLED_RUN), _tiny_run("greedy", RESTS)],
        ),
        # On a GPU, or on the CPU in Triton's interpreter.
        "device": lambda: (
            {**TINY, **with_trees(method, SMALL_TREE)},
            [
                # Eager engines of GPUs are not warmed up by requests: their first levels have no plan.
                {**_tiny_run("greedy"), "name": "first", "params": {**GREEDY, "max_tokens": 4}},
                *_tiny_runs(),
                *(_tiny_run("greedy", control) for control in (*TINY_CONTROLS, *TINY_CHECKS)),
            ],
        ),
        # How many nodes are verified is told from costs, whose they are is decided on the device.
        "device-async": lambda: (
            {**TINY, **_deciding_by_costs(method)},
            [
                *_tiny_runs(),
                *(_tiny_run("greedy", control) for control in (RESTS, *AHEAD_CHECKS, *AHEAD_CONTROLS)),
                *under(SMALL_TREE, [_tiny_run("greedy")], "fixed "),
            ],
        ),
        "device-graphs": lambda: (
            {**TINY, **with_trees(method, SMALL_TREE)},
            [
                *_tiny_runs(),
                _tiny_run(COUPLED_RUN),
                _tiny_run("greedy", RESTS),
                *(_tiny_run("greedy", control) for control in GRAPH_CONTROLS),
            ],
        ),
        # Costs are given: interpreted ones say nothing.
        "device-smart": lambda: (
            {**TINY, **_deciding_by_costs(method)},
            [_tiny_run("greedy"), _tiny_run("repetition", "no waiting")],
        ),
        "stock": lambda: ({**ROOMY, **stock_chain(method)}, [short_greedy]),
        # Small blocks, so that a drafter that rests for long goes on in a window.
        "live": lambda: (
            {**ROOMY, **_from_yaml(), "block_size": 32},
            _edited_runs(method, short_greedy)
            + under(
                FIXED_TREE,
                [
                    {**short_greedy, "name": "window", "control": "rests a hundred steps"},
                    {**short_greedy, "name": "capped", "params": _with_terms(short_greedy["params"])},
                ],
            ),
        ),
    }
    reasons = {
        "structured_outputs_config": {
            **COMPACT,
            "reasoning_parser": "a_line",
            "reasoning_parser_plugin": "reasoning.py",
        }
    }
    engine, runs = kinds[kind]()
    # JSON round trip: what is shared between runs must not be.
    job = json.loads(json.dumps({"engine": {**base, **engine}, "runs": runs}))
    if kind == "live":
        job["files"] = {"settings.yaml": _edits(method)["smart"]}
    if kind.endswith("-reasoning"):
        job["files"] = {"reasoning.py": REASONING}
    if kind.endswith("-async"):
        job["async"] = True
    if kind in ("device-graphs", "device-smart", "device-async"):
        job["graphs"] = True
    if kind in ("device-smart", "device-async", "tree-waiting"):
        job["files"] = {"costs.json": json.dumps(costs())}
    return job


def _with_terms(params: list[dict]) -> list[dict]:
    """Each request allows one draft node, and weighs something else."""
    return [
        {**each, "extra_args": {"smart_max_nodes": 1, "smart_weight": 1 + index}}
        for index, each in enumerate(params)
    ]


def _first(run: dict) -> dict:
    """Of `run` the first requests."""
    return {**run, "prompts": run["prompts"][:WAITING_RUNS], "params": run["params"][:WAITING_RUNS]}


def _deciding_by_costs(method: str, may_turn_off: bool = False) -> dict:
    """LLM arguments of trees that are chosen by the costs in costs.json."""
    arguments = with_trees(method, {"name": "smart", "may_turn_off": may_turn_off})
    settings = arguments["additional_config"]["smart"]
    settings["cost_table"] = {"path": "costs.json", "correct": False}
    settings["trace"] = {"path": "trace.jsonl"}
    return arguments


def costs() -> dict:
    """A stored cost table under which trees of several sizes and depths pay."""
    key = dict.fromkeys(TableKey.model_fields, "any") | {"compiled": False}
    key |= {"tensor_parallel_size": 1, "nodes": 1, "cost_version": 1}
    samples = CostSamples(
        verify=((1, 10.0), (8, 11.0), (9, 14.0), (64, 20.0)), draft=((1, 0.5), (16, 1.0))
    )
    return {
        "schema_version": SCHEMA,
        "created": "by hand",
        "key": key,
        "samples": samples.model_dump(mode="json"),
    }


def _from_yaml() -> dict:
    """LLM arguments that switch on the trees of settings.yaml."""
    proposer = {"model": "vllm_smart.SmartProposer", "num_speculative_tokens": TREE["node_budget"]}
    return {
        "speculative_config": proposer,
        "additional_config": {"smart": {"config": "settings.yaml"}},
    }


def _edits(method: str) -> dict[str, str]:
    """Texts of settings.yaml by name; JSON is YAML."""
    drafter = {"method": method, "model": f"demo:{method}"}
    settings = {"drafter": drafter, "tree": TREE, "trace": {"path": "trace.jsonl"}}
    settings["acceptance"] = {"state": "acceptance.json"}
    on = {"name": "smart", "may_turn_off": False}
    return {
        "smart": json.dumps({**settings, "policy": on}),
        "chain": json.dumps({**settings, "policy": {"name": "chain", "num_tokens": 3}}),
        "bad": "policy: {name: nonsense}",
        "larger": json.dumps({**settings, "tree": {**TREE, "node_budget": 99}, "policy": on}),
        "off": json.dumps({**settings, "policy": {"name": "off"}}),
    }


def _edited_runs(method: str, run: dict) -> list[dict]:
    return [{**run, "name": name, "edit": text} for name, text in _edits(method).items()]


def _bf16_run() -> dict:
    run = sampling_run("greedy", NUM_REQUESTS)
    return {**run, "params": [{**p, "logprobs": 10} for p in run["params"]]}


def _tiny_run(name: str, control: str | None = None) -> dict:
    params = {**SAMPLING[name], "max_tokens": 12, "seed": 7}
    # A block less a bit: trees, and what moves in them, cross from one block to the next.
    chosen = [prompt[: 18 + 4 * i] for i, prompt in enumerate(prompts()[:4])]
    return {"name": control or name, "prompts": chosen, "params": params, "control": control}


def _tiny_runs() -> list[dict]:
    return [_tiny_run(name) for name in TINY_RUNS]


def _repeating_run(control: str | None = None) -> dict:
    run = _tiny_run("greedy", control)
    prompts = [prompt[:number] * 3 for number, prompt in enumerate(run["prompts"], 8)]
    return {**run, "name": control or REPEATING, "prompts": prompts}


def _many_run() -> dict:
    params = {"temperature": 1.0, "n": SAMPLES_PER_REQUEST, "max_tokens": 6, "ignore_eos": True}
    prompt = next(p for p in prompts() if len(p) < 100)
    return {
        "name": "many",
        "prompts": [prompt] * (NUM_SAMPLES // SAMPLES_PER_REQUEST),
        "params": params,
    }
