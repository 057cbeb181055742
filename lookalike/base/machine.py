"""What this machine computes with: for benchmarks to say, and for the cache to tell machines apart."""

import os
import platform
import re
from pathlib import Path

# Those that kernels are chosen by; the rest of the list names faults and mitigations, which a system update changes.
KERNELS = re.compile(r"avx|amx|sse|ssse|fma|f16c|bmi|gfni|vnni")


def cpu_name() -> str:
    """What the processor calls itself."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """The instruction sets that the processor lists, sorted; "" where the system does not tell."""
    x86 = [flag for flag in _cpu_line("flags").split() if KERNELS.match(flag)]
    arm = [*_cpu_line("Features").split(), _cpu_line("CPU implementer"), _cpu_line("CPU part")]
    return " ".join(sorted(filter(None, x86 + arm)))


def gpu_names() -> list[str]:
    """NVIDIA's GPUs that have a driver, in the driver's order."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")]
    return named or ["GPU through WSL"] * Path("/dev/dxg").exists()


def environment(*prefixes: str) -> list[str]:
    """The environment variables that begin so, with their values, sorted; those for logging left out."""
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith(prefixes) and not name.startswith("TF_CPP_")
    )


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_line(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return ""
