"""What every stage, the library and the faces share: errors, files, params, script, vectors, caches of the user.

Imports nothing of the library.
"""
