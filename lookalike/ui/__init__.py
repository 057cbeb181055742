"""The browser page.

Imports base, artifacts, images, collection and report.
"""
