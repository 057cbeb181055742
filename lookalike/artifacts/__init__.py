"""What lies on disk between stages: arrays of images and embeddings, and the description of a network.

Imports base and, for a network's tokenizer files, nothing else.
"""
