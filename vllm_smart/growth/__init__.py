"""Growth of trees in a worker: what a step's growth is given, keeps on the device and hands back.

Needs torch and arrays, no object of vLLM's. The loop over levels is the proposer's; forwards of vLLM's
drafters are the adapter's.
"""
