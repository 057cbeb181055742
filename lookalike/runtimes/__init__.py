"""Runtimes, each of which loads the network files as a function from pixels to embeddings.

Imports base, artifacts and networks. TensorFlow and OpenVINO are imported only when they are used.
"""
