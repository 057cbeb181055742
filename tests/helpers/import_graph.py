"""Which of the project's own files a script runs, read from the source: its imports, and theirs, and so on."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def project_files(script: Path, root: Path = ROOT) -> set[str]:
    """Every file of the project that `script` imports or reads beside itself, directly or not; relative to the root."""
    seen: set[str] = set()
    waiting = [script.relative_to(root).as_posix()]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if not (root / name).is_file() or not name.endswith(".py"):
            continue  # a folder without __init__.py, or a template
        for named in named_imports(root / name, root) | named_files(root / name, root):
            waiting.append(named)
            # importing a.b.c runs a and a.b too
            waiting += [f"{parent}/__init__.py" for parent in map(str, Path(named).parents) if parent != "."]
    return {name for name in seen if (root / name).is_file()}


def named_imports(path: Path, root: Path = ROOT) -> set[str]:
    """The project's files that a file imports, wherever it does: in statements, relative ones too, or by import_module.

    Raises ValueError for an import of a computed name, which nobody can follow.
    """
    found = set()
    for node in nodes(path.read_text(encoding="utf-8")):
        for module in _modules(node, path, root):
            places = [root]
            if not (path.parent / "__init__.py").exists():
                places.append(path.parent)  # a script, no module of a package: Python looks beside it, too
            for place in places:
                base = place.joinpath(*module.split("."))
                found |= {file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()}
    return {file.relative_to(root).as_posix() for file in found}


def _modules(node: ast.AST, path: Path, root: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = path.parent.relative_to(root).parts[: len(path.parent.relative_to(root).parts) - node.level + 1]
        base = ".".join([*package, *filter(None, [node.module])]) if node.level else node.module or ""
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and _name(node.func) in ("__import__", "import_module"):
        named = node.args[0] if node.args else None
        if not isinstance(named, ast.Constant) or not isinstance(named.value, str) or named.value.startswith("."):
            raise ValueError(f"{path}, line {node.lineno}: an import of a computed name cannot be followed")
        return [named.value]
    return []


def named_files(path: Path, root: Path = ROOT) -> set[str]:
    """Files beside a file, no modules, that a string in it names: a template, a style sheet."""
    strings = [
        node.value
        for node in nodes(path.read_text(encoding="utf-8"))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100
    ]
    beside = [path.parent / text for text in strings if text and text.isprintable() and not text.startswith(("/", "."))]
    return {file.relative_to(root).as_posix() for file in beside if file.suffix != ".py" and file.is_file()}


def sections_read(files: set[str], root: Path = ROOT) -> set[str]:
    """The sections of params.yaml that some files load: the second argument of every `params.load(...)`.

    Raises ValueError for a section whose name is computed.
    """
    found = set()
    for name in sorted(file for file in files if file.endswith(".py")):
        for node in nodes((root / name).read_text(encoding="utf-8")):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.load":
                section = node.args[1] if len(node.args) > 1 else None
                if not isinstance(section, ast.Constant) or not isinstance(section.value, str):
                    raise ValueError(
                        f"{name}, line {node.lineno}: which section is loaded cannot be read from the code"
                    )
                found.add(section.value)
    return found


@cache
def nodes(text: str) -> list[ast.AST]:
    """Every node of a module's source; each is asked for by a dozen tests."""
    return list(ast.walk(ast.parse(text)))


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def explained_only(file: str) -> bool:
    """Whether a file is the docstring of a package, which no stage can depend on."""
    body = ast.parse((ROOT / file).read_text()).body if file.endswith("__init__.py") else [ast.Pass()]
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
