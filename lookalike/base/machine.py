"""The processor and GPUs of this machine, for benchmark reports and for cache keys."""

import os
import platform
import re
from pathlib import Path

# CPU flags that libraries choose kernels by. The others name faults and mitigations, which a system update can change.
KERNELS = re.compile(r"avx|amx|sse|ssse|fma|f16c|bmi|gfni|vnni")


def cpu_name() -> str:
    """Return the processor's model name."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """Return the processor's instruction sets, sorted; "" where the system does not list them."""
    x86 = [flag for flag in _cpu_line("flags").split() if KERNELS.match(flag)]
    arm = [*_cpu_line("Features").split(), _cpu_line("CPU implementer"), _cpu_line("CPU part")]
    return " ".join(sorted(filter(None, x86 + arm)))


def gpu_names() -> list[str]:
    """Return the names of NVIDIA GPUs with a driver, in the driver's order."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")]
    return named or ["GPU through WSL"] * Path("/dev/dxg").exists()


def environment(*prefixes: str) -> list[str]:
    """Return the environment variables with these prefixes as NAME=value, sorted, without those for logging."""
    return sorted(
        f"{name}={value}"
        for name, value in os.environ.items()
        if name.startswith(prefixes) and not name.startswith("TF_CPP_")
    )


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_line(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return ""
