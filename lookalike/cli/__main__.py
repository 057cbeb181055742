"""`python -m lookalike.cli`, where the command itself is not installed."""

from lookalike.cli import app

app(prog_name="lookalike")
