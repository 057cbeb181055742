"""Imported last by a process that is to be copied: its objects are left out of the search for garbage.

A copy shares memory with the process until one of them writes to it, and a search for garbage writes to all of it.
"""

import gc

gc.collect()
gc.freeze()
