"""Refinement of embeddings, so that they compare better, without labels; and FAISS, configured.

Imports base and artifacts.
"""
