"""What trees cannot work with, refused by name, with its value and a way out.

Settings and models when the engine starts, requests at admission. Reads vLLM's configuration, changes
nothing.
"""
