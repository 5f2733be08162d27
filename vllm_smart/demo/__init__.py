"""The demonstration: a pair for which speculation pays on this machine, served, asked and drawn.

Talks to a server as any client does; imports no vLLM.
"""
