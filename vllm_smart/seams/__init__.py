"""What we rely on of vLLM: which versions, which platform, and every place that we touch, as data.

`table` lists the places; contract tests and every engine with trees check them (`seam`). What differs
by version is in one file for each (`v0_32`, `v0_33`). Supported versions are in `host.SUPPORTED`. Who
touches the places is the adapter.
"""
