"""Commands that may mount file systems, seen by nobody else: a full disk or a read-only folder for a test."""

import shutil
import subprocess
from pathlib import Path

import pytest

from proof.patience import patience

UNSHARE = ("unshare", "--map-root-user", "--mount")


def unshared(command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in a mount namespace of its own, or skip where the system does not let us."""
    need_namespaces()
    return subprocess.run(
        [*UNSHARE, "sh", "-c", command], capture_output=True, text=True, check=False, timeout=patience(300)
    )  # fmt: skip


def need_namespaces() -> None:
    """Skip the test where no mount namespace is to be had."""
    probe = [*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    if not shutil.which(UNSHARE[0]) or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not to be had here")


def read_only(folder: Path) -> str:
    """The shell command that makes a folder read-only there."""
    return f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
