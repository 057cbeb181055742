"""Embedding many images, each once: what the cache knows is not computed again.

Imports base, artifacts, networks and runtimes.
"""
