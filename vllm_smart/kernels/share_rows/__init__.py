"""A step's rows of drafts shared out over its requests, before the forward of a step scheduled ahead.

The host has fixed how many draft nodes the step verifies; whose they are is decided by their value.
"""

LEAST_VALUE = 1e-30  # of a node that is none: still before where there is no room
