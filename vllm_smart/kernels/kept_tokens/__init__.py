"""Which tokens top-k and then top-p leave of a row of logits: those from the smallest logit kept on.

Logits that are equal to it all stay.
"""
