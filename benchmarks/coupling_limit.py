"""How often one candidate can be right where the target samples: by the noise, and at the very most.

    OMP_NUM_THREADS=1 python -m benchmarks.coupling_limit --out docs/results/coupling-limit.json

The shipped target and draft model by their distributions alone, on text that the target samples after
held-out prompts, at several temperatures. At each position, for p of the target and q of the draft:
- `noise`: both draw by the same noise, argmax(log p + g) and argmax(log q + g), and are equal with
  probability sum_i 1 / sum_j max(p_j / p_i, q_j / q_i) (arXiv 2408.07978). What the draft names may be
  verified or not, by whatever rule, and text stays plain decoding's token for token.
- `most`: sum_i min(p_i, q_i), which no way of drafting one token from q can exceed. Rejection sampling
  reaches it. It gives text of the same distribution, another one for the same seed, and only as long as
  the token that was drawn has no say in whether it is verified.
Two minutes on a core; busy or not makes no difference.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

TEMPERATURES = (0.3, 0.6, 0.8, 1.0, 1.3)
NUM_PROMPTS, PROMPT, NUM_TOKENS = 32, 64, 64


@torch.inference_mode()
def measure(temperature: float, prompts: torch.Tensor, target: Any, draft: Any) -> dict[str, float]:
    """Means over all positions of text that the target samples.

    Args:
        prompts: [num_prompts, PROMPT] token ids.
    """
    torch.manual_seed(0)
    text = target.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        pad_token_id=0,
    )
    p, q = (model(text).logits[:, PROMPT - 1 : -1].float() / temperature for model in (target, draft))
    p, q = (logits.flatten(0, 1).log_softmax(-1) for logits in (p, q))
    noise = [shared_noise(*rows).item() for rows in zip(p, q, strict=True)]
    most = torch.minimum(p.exp(), q.exp()).sum(-1)
    return {
        "temperature": temperature,
        "positions": len(p),
        "noise": sum(noise) / len(noise),
        "most": most.mean().item(),
    }


def shared_noise(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """How likely two draws by one noise are equal.

    Args:
        p, q: [vocabulary] logarithms of probabilities.
    """
    ratios = torch.maximum(p - p[:, None], q - q[:, None])
    return torch.exp(-ratios.logsumexp(-1)).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vllm_smart.demo_model import demo_model_paths, held_out_prompts

    pair = demo_model_paths()
    target, draft = (
        AutoModelForCausalLM.from_pretrained(pair[kind], dtype=torch.float32)
        for kind in ("target", "draft")
    )
    tokenizer = AutoTokenizer.from_pretrained(pair["target"])
    tokens = [tokenizer.encode(text)[:PROMPT] for text in held_out_prompts()]
    prompts = torch.tensor([one for one in tokens if len(one) == PROMPT][:NUM_PROMPTS])
    rows = []
    for temperature in TEMPERATURES:
        rows.append(measure(temperature, prompts, target, draft))
        print(json.dumps(rows[-1]), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
