"""Puts our parts where vLLM looks for its own, when it loads its plugins.

In all processes: `EngineArgs.create_engine_config` (rewrites our speculative config). On CPUs also the
gates of Model Runner V2, see `mrv2_cpu.host`.

In processes that have an engine core: `EngineCoreProc._process_input_queue`, see `entry.idle`,
`EngineCore.post_step`, see `entry.waiting`, and `StructuredOutputManager`, see `entry.grammar`.

In a front end whose engine has trees: `InputProcessor.process_inputs` (refuses requests that the
runner could not serve), and `AsyncLLM._run_output_handler` where there is `/metrics`, see
`entry.distant_counters`. All of it looks at the configuration of each engine. What is done in worker
processes: `adapter.wiring`.
"""

import functools
import sys
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_smart.adapter.engine_settings import (
    counters_prefix,
    decide_placement,
    decide_shape,
    has_trees,
    let_whole_prompts_in,
    smart_config,
)
from vllm_smart.entry import launch
from vllm_smart.entry.distant_counters import ask_distant_engines
from vllm_smart.entry.grammar import check_grammars_along_paths
from vllm_smart.entry.idle import time_steps_while_idle
from vllm_smart.entry.last_words import leave_last_words, say_what_failed
from vllm_smart.entry.waiting import tell_workers_who_waits
from vllm_smart.kernels.cpu.ahead import start_compiling
from vllm_smart.profiling import default_folder
from vllm_smart.seams.host import check_vllm_version, is_cpu, runs_on_triton
from vllm_smart.seams.rebound import is_ours, marked
from vllm_smart.seams.seam import Where, check_seams
from vllm_smart.seams.table import seams_of_this_version


def install() -> None:
    """Idempotent; cheap where the speculative config does not name us."""
    if is_cpu():
        from vllm_smart.mrv2_cpu import enable_cpu_host

        enable_cpu_host(has_trees)
    leave_last_words()
    time_steps_while_idle()
    tell_workers_who_waits()
    check_grammars_along_paths()
    if any(launch.PROPOSER in argument for argument in sys.argv):
        say_what_failed()  # also of what comes before a configuration: the port
    if is_ours(EngineArgs.create_engine_config):
        return
    EngineArgs.create_engine_config = _with_trees(EngineArgs.create_engine_config)


def _with_trees(create_engine_config: Any) -> Any:
    @functools.wraps(create_engine_config)
    def wrapper(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        is_ours = launch.names_smart(self)
        if is_ours:
            say_what_failed()
            check_vllm_version()
            check_seams(seams_of_this_version(), {Where.FRONT_END})
            launch.rewrite_engine_args(self, has_front_end=not kwargs.get("headless", False))
        try:
            vllm_config = create_engine_config(self, *args, **kwargs)
        except ValueError:
            if is_ours:
                launch.check_lora_room(self)
                launch.check_vocabulary(self)
            raise
        config = smart_config(vllm_config)
        if config is not None:
            from vllm_smart.refusals.limits import check_limits, why_not_beside, why_only_chains

            let_whole_prompts_in(vllm_config)
            check_limits(vllm_config, config)
            if config.drafter.placement == "auto":
                why = why_not_beside(vllm_config, config)
                if why is not None:
                    decide_placement(vllm_config, "inline", f"a process of its own does not work {why}")
            decide_shape(vllm_config, why_only_chains(vllm_config))
            if config.ngrams is not None:
                from vllm_smart.adapter.ngrams import open_datastore

                open_datastore(config.ngrams, vllm_config.model_config)  # before weights are loaded
            check_requests_at_admission()
            if counters_prefix(vllm_config) is not None:
                ask_distant_engines()
            if not runs_on_triton():
                dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
                start_compiling(config.drafters, dtype, default_folder())
        return vllm_config

    return marked(wrapper)


def check_requests_at_admission() -> None:
    """Refuse, in the front end, requests that would end an engine with trees. Idempotent."""
    from vllm.v1.engine.input_processor import InputProcessor

    from vllm_smart.refusals.admission import check_request, name_tenant

    process_inputs = InputProcessor.process_inputs
    if is_ours(process_inputs):
        return

    @functools.wraps(process_inputs)
    def checked(self: InputProcessor, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        if has_trees(self.vllm_config):
            check_request(request, self.vllm_config)
            name_tenant(request)
        return request

    InputProcessor.process_inputs = marked(checked)
