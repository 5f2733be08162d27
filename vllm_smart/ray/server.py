"""A server for `ray.serve.llm` that also tells Serve's autoscaler what speculation is worth."""

from ray.serve.llm.deployment import LLMServer

from vllm_smart.ray.what_pays import Counters, what_pays


class SmartLLMServer(LLMServer):  # type: ignore[misc]  # Ray has no types
    """`LLMConfig(server_cls="vllm_smart.ray.server:SmartLLMServer")`, of engines with trees."""

    _seen: Counters | None = None  # when they were asked for last

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What a policy of Serve's finds in its context's `aggregated_metrics`; see `what_pays`."""
        now: Counters
        now, *_ = await self.collective_rpc("smart_counters")
        seen, self._seen = self._seen, now
        return what_pays(seen or {}, now)
