"""How a network is run: a runtime loads the network files as a function from pixels to embeddings.

Imports base, artifacts and networks; the libraries that compute are imported where they are used.
"""
