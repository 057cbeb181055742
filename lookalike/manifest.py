"""What a folder holds, file by file: its trace in Git says it, and whoever opens the folder compares."""

from pathlib import Path

from lookalike.files import file_digest


def digests(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of every file in a folder, by name, sorted."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}
