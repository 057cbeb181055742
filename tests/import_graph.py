"""Which of the project's own files a script runs, read from the source: its imports, and theirs, and so on."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def project_files(script: Path) -> set[str]:
    """Every file of the project that `script` imports, directly or not, and itself; relative to the root."""
    seen: set[str] = set()
    waiting = [script.relative_to(ROOT).as_posix()]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if not (ROOT / name).is_file():
            continue  # a folder without __init__.py
        for named in named_imports(ROOT / name):
            waiting.append(named)
            # importing a.b.c runs a and a.b too
            waiting += [f"{parent}/__init__.py" for parent in map(str, Path(named).parents) if parent != "."]
    return {name for name in seen if (ROOT / name).is_file()}


def named_imports(path: Path) -> set[str]:
    """The project's files that a file's import statements name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            base = ROOT.joinpath(*module.split("."))
            found |= {file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()}
    return {file.relative_to(ROOT).as_posix() for file in found}
