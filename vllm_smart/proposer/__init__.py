"""Where candidate nodes come from, and how they become trees."""

from vllm_smart.proposer.candidates import AcceptanceFn, CandidatePool, Frontier

__all__ = ["AcceptanceFn", "CandidatePool", "Frontier"]
