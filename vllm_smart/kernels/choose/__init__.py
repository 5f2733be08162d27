"""Which candidates of a batch to verify: the best ones, as many as a step's goal asks for.

    rate(n) = (tokens that are emitted anyway + the n best values) / (ms spent + ms of verifying n)

where a value is a path probability times its request's weight. Goals are `BY_RATE`, the best rate;
`FIRST_DROP`, the last n before the rate first falls; `BY_WORTH`, the most tokens less the price of
the time.
"""

from vllm_smart.kernels.choose.cpu import BY_RATE, BY_WORTH, FIRST_DROP

__all__ = ["BY_RATE", "BY_WORTH", "FIRST_DROP"]
