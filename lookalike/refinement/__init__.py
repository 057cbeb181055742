"""Making embeddings compare better without a label, and FAISS, configured.

Imports base and artifacts.
"""
