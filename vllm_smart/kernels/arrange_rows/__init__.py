"""A step's rows arranged as trees: positions by depth, masks, and what sampling and the walk ask for.

For GPUs only, where the host does not know the trees; elsewhere `step.plan` does it.
"""
