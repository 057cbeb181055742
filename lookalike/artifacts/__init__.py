"""Files that one stage writes and another reads: arrays of images and embeddings, and the description of a network.

Imports base.
"""
