"""Embedding of many images, each at most once: embeddings in the cache are not computed again.

Imports base, artifacts and runtimes.
"""
