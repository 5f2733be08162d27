"""How many of each row's values are among the best of a whole batch.

Ties go to the lower row, then to the lower column, so that all ranks of a tensor-parallel group
count alike.
"""
