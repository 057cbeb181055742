"""A digest of what Python code does, independent of file names, folders, comments and docstrings.

Cached results are found by a digest of the code that computed them. A digest of the files' bytes would recompute
everything after a changed comment or a moved module.
"""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

LIBRARY = Path(__file__).parents[1]
PACKAGE = LIBRARY.name


def code_digest(files: Iterable[str | Path]) -> str:
    """Return a hex SHA-256 over Python files, in any order.

    files  paths relative to the library.

    It ignores comments, docstrings, layout, the messages of `raise`, imports from the library, and the names of its
    modules where they qualify another name.
    """
    parts = sorted(hashlib.sha256(meaning((LIBRARY / file).read_text(encoding="utf-8"))).hexdigest() for file in files)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def meaning(source: str) -> bytes:
    """Rewrite a module's source without the parts that `code_digest` ignores.

    >>> one = meaning("from lookalike import files; size = files.size(2)  # twice")
    >>> one == meaning("from lookalike.base import disk; size = disk.size(2)")
    True
    """
    tree = ast.parse(source)
    return ast.unparse(_Bare(_modules(tree)).visit(tree)).encode()


def _modules(tree: ast.Module) -> set[str]:
    """Return the names that a module imports from the library."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE
        for alias in node.names
    }


class _Bare(ast.NodeTransformer):
    """Transformer that removes the parts that `code_digest` ignores."""

    def __init__(self, modules: set[str]) -> None:
        self._modules = modules

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | None:
        return None if (node.module or "").split(".")[0] == PACKAGE else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in self._modules:
            return ast.Name(node.attr, node.ctx)  # files.size and disk.size: size
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        return ast.Raise()

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | None:  # docstrings
        self.generic_visit(node)
        return None if isinstance(node.value, ast.Constant) else node
