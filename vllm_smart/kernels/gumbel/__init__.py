"""The noise of samples: a pure function of (seed, position, token), as Model Runner V2 draws it.

A sample is the token with the largest logit / temperature + noise. The noise is -log(-log(1 - u)), with
u from 32 bits of murmur3 over seed, position and token; or -log(-log(u)), with u from 53 bits.
"""
