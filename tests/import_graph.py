"""Which of the project's own files a script runs, read from the source: its imports, and theirs, and so on."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Chosen by name at run time, so that no import statement names them: a stage that imports the package may run any.
PLUGINS = {"lookalike/datasets/__init__.py": "lookalike/datasets", "lookalike/indexes/__init__.py": "lookalike/indexes"}


def project_files(script: Path) -> set[str]:
    """Every file of the project that `script` imports, directly or not, and itself; relative to the root."""
    seen: set[str] = set()
    waiting = [script.relative_to(ROOT).as_posix()]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += _imports(ROOT / name)
        if name in PLUGINS:
            waiting += [path.relative_to(ROOT).as_posix() for path in (ROOT / PLUGINS[name]).glob("*.py")]
    return seen


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            for end in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b too
                base = ROOT.joinpath(*parts[:end])
                found += [file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()]
    return [file.relative_to(ROOT).as_posix() for file in found]
