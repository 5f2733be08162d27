"""Drafting beside verification: what worker and drafter tell one another, and trees that outlive steps.

The worker and the drafter's process share two boards in memory: on one stand the requests' texts, on
the other the trees that were grown below them. Nobody trusts what is read.
Needs arrays alone; whose model runs, and where, is the adapter's.
"""
