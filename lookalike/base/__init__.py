"""Helpers shared by stages, library and faces: errors, files, params, script, vectors, the user's cache folder.

Imports nothing of the library.
"""
