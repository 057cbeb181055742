"""Search by picture over HTTP: `lookalike serve`. Needs requirements-serve.txt; no stage imports it."""
