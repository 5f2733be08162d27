"""Which tokens may come next, as masks of a bit for each: of what is drafted, where that is known.

A mask is [num_words] int32. Bit i of word w is token 32 * w + i; a set one is allowed. Tokens beyond
the mask are not.
"""
