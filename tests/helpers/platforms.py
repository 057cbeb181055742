"""Marks of tests that need Linux, or POSIX."""

import os
import sys

import pytest

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and limits of a process")
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL, process groups or fork, which Windows has not")
