"""The likeliest tokens of rows of logits and their probabilities: the children that a drafter names."""
