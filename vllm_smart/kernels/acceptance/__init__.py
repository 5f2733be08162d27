"""A draft's probabilities read as probabilities of acceptance; see `scheduler.AcceptanceModel`.

The target samples one token. Child i is accepted if those before it are not, and then with
probability sigmoid(intercept + offset + slope * logit(share)), where its share is what the draft
gives it of all that it leaves for it and later ones. So siblings never add up to more than 1. No
child is likelier than the one before it.

On GPUs it is a part of `grow.gpu.add_children`.
"""
