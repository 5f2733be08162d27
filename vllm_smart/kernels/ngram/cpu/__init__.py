"""Compiled for hosts: one call for each store and one for the trees, whatever the batch."""
