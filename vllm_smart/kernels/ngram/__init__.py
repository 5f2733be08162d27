"""N-grams: where the latest tokens of a text have stood before, and trees of what came after them.

An occurrence is a place whose last tokens are those of a context, as many as its match length says,
and the tokens that follow there. Stores find them; none has to know another:

- `cpu.chains`: texts that grow, with hash heads of the last 4, 2 and 1 tokens and chains of the places
  before. A request's own text is one, a ring of finished responses another;
- `cpu.contexts`: a text that is settled, its places sorted by what stands before them.

They write into the same int32 arrays, by request: `match`, `store` and `num_ahead` [n, most], `ahead`
[n, most, max_depth], and `num` [n], how many there are. `cpu.trees` makes one tree of them. No file
calls compiled functions of another, since numba's cache notices changes of none but its own.
"""
