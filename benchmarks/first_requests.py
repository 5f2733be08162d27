"""What the first request of each kind takes beside later ones, on a server that has just started.

    vllm-smart serve-demo --port 8000 &      # wait until it is ready
    python -m benchmarks.first_requests --url http://localhost:8000

With `--soak 1000`, as many requests of all kinds follow, several at a time, and the server's counter of
compilations is printed.

Every request of a kind is the same, and reuses nothing that another has computed. A kind comes after
all kinds above it, so what it shares with them is warm.
"""

import argparse
import json
import random
import time
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from vllm_smart.demo_model import held_out_prompts

NUM_TIMES = 10
NUM_TOKENS = 24
_SEVERAL = ("four together", "sixteen, one goes on")  # requests at once
_COUNTER = "vllm_smart:jit_compilations_total"
_LATER = 5  # of the last, whose median the first is compared with


class Requests:
    """Requests of each kind, to one server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with urllib.request.urlopen(f"{self.url}/v1/models") as answer:
            self.model = json.load(answer)["data"][0]["id"]
        prompts = held_out_prompts()
        self.long, self.short = "\n".join(prompts[:3]), prompts[40]

    def ask(self, prompt: str, max_tokens: int = NUM_TOKENS, **parameters: Any) -> None:
        """One request, greedy unless told otherwise."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        body |= {"ignore_eos": True, "cache_salt": uuid.uuid4().hex, **parameters}
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            json.load(answer)

    def together(self, *tokens: int) -> None:
        """Requests that decode side by side, of so many tokens each."""
        with ThreadPoolExecutor(len(tokens)) as pool:
            list(pool.map(lambda count: self.ask(self.short, count), tokens))

    def kinds(self) -> dict[str, Callable[[], None]]:
        """What to time, by name, in order."""
        sampled = {"temperature": 0.8, "seed": 7}
        regex = {"structured_outputs": {"regex": "(alpha|beta|gamma){3}[0-9]{4}"}}
        return {
            "greedy": lambda: self.ask(self.short),
            "sampled": lambda: self.ask(self.short, **sampled),
            "top-k, top-p": lambda: self.ask(self.short, **sampled, top_k=20, top_p=0.9),
            "penalties": lambda: self.ask(self.short, frequency_penalty=0.5, repetition_penalty=1.1),
            "bad words": lambda: self.ask(self.short, bad_words=["import"], min_tokens=4),
            "log probabilities": lambda: self.ask(self.short, logprobs=3),
            "a grammar": lambda: self.ask(self.short, ignore_eos=False, **regex),
            "a long prompt": lambda: self.ask(self.long),
            "without speculation": lambda: self.ask(self.short, vllm_xargs={"smart_max_nodes": 0}),
            "four together": lambda: self.together(24, 24, 24, 24),
            "sixteen, one goes on": lambda: self.together(*[8] * 15, 48),
            "sampled, penalties and log probabilities": lambda: self.ask(
                self.short, **sampled, presence_penalty=0.5, logprobs=2
            ),
        }


def soak(requests: Requests, count: int) -> None:
    """Ask `count` requests of kinds drawn at random, four clients at a time."""
    kinds = [ask for kind, ask in requests.kinds().items() if kind not in _SEVERAL]
    chosen = random.Random(0).choices(kinds, k=count)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda ask: ask(), chosen))


def compilations(url: str) -> float:
    """What the server has compiled while serving, by its own count."""
    time.sleep(2.0)  # it looks once a second
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(_COUNTER))


def main() -> None:
    """Time all kinds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--soak", type=int, default=0, help="further requests")
    options = parser.parse_args()
    requests = Requests(options.url)
    print(f"{'kind':42} {'first s':>8} {'later s':>8} {'ratio':>6}")
    for kind, ask in requests.kinds().items():
        seconds = []
        for _ in range(NUM_TIMES):
            start = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - start)
        later = median(seconds[-_LATER:])
        print(f"{kind:42} {seconds[0]:8.2f} {later:8.2f} {seconds[0] / later:6.2f}", flush=True)
    soak(requests, options.soak)
    print(
        f"compilations while serving: {compilations(requests.url):.0f}, {options.soak} requests later"
    )


if __name__ == "__main__":
    main()
