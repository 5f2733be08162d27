"""Where candidate nodes come from, and how they become trees."""

from vllm_smart.kernels.evidence import BOTH, GRAMMAR, MODEL, NGRAM
from vllm_smart.proposer.candidates import COLUMNS, Candidates
from vllm_smart.proposer.evidence_pool import EvidencePool
from vllm_smart.proposer.grammar import Grammar, StepGrammars
from vllm_smart.proposer.growth import GrowthBounds, LevelDecisions, grow
from vllm_smart.proposer.placement import GrowthWork, InStep, Placement
from vllm_smart.proposer.plan import LevelPlan
from vllm_smart.proposer.pool import AcceptanceFn, CandidatePool, Frontier
from vllm_smart.proposer.source import CandidateSource, RecordedSource

__all__ = [
    "BOTH",
    "COLUMNS",
    "GRAMMAR",
    "MODEL",
    "NGRAM",
    "AcceptanceFn",
    "CandidatePool",
    "CandidateSource",
    "Candidates",
    "EvidencePool",
    "Frontier",
    "Grammar",
    "GrowthBounds",
    "GrowthWork",
    "InStep",
    "LevelDecisions",
    "LevelPlan",
    "Placement",
    "RecordedSource",
    "StepGrammars",
    "grow",
]
