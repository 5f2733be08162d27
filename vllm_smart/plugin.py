"""vLLM's entry point (`vllm.general_plugins`): tiny, idempotent, loaded in every vLLM process."""


def register() -> None:
    """Install the seams through which `vllm serve` reaches us.

    Nothing changes for an engine whose `--speculative-config` does not name
    `vllm_smart.SmartProposer`.
    """
    from vllm_smart.entry.install import install

    install()
