"""Embedding networks by name: built, cut, pooled, saved and loaded with Keras, and converted for OpenVINO.

Imports base and artifacts.
"""
