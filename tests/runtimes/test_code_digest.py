"""What is kept between runs is found by what code does: a comment costs nobody a second computation."""

import ast
import re
from pathlib import Path

import pytest

from lookalike.finetuning import finetune, frozen_outputs
from lookalike.runtimes import quantization, registry
from lookalike.runtimes.code_digest import LIBRARY, code_digest, meaning
from tests.helpers.import_graph import named_imports

MODULES = sorted(LIBRARY.rglob("*.py"))
# What the computing modules import and no bit of an embedding comes from: errors, files, settings, the cache itself.
INERT = {
    "base", "artifacts", "extraction/batch_size.py", "extraction/cache.py", "networks/sizes.py", "runtimes/base.py",
    "runtimes/code_digest.py", "runtimes/registry.py", "__init__.py",
}  # fmt: skip


def reworded(source: str) -> str:
    """The same code with other comments, docstrings, line breaks and messages."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = "Reworded."
    return "# a comment\n" + re.sub(r"\n", "  # another\n", ast.unparse(tree), count=1)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_a_comment_in_any_module_changes_no_digest(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert meaning(source + "\n# a comment\n") == meaning(source)
    assert source.count('"""') < 2 or meaning(reworded(source)) == meaning(source)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1", "x = 2", False),
        ("x = a + b", "x = a - b", False),
        ("def f(x=1): return x", "def f(x=2): return x", False),
        ("x = 'one'", "x = 'two'", False),
        ("def f():\n 'One.'\n return 1", "def f():\n  # two\n  return 1", True),
        ("def f():\n raise ValueError('one')", "def f():\n raise ValueError('two')", True),
        ("from lookalike import network\nx = network.NAME", "from lookalike.a import b\nx = b.NAME", True),
        ("from lookalike import network\nx = network.NAME", "from lookalike import network\nx = network.OTHER", False),
        ("from lookalike.a import f\nx = f(1)", "from lookalike.b.c import f\nx = f(1)", True),
        ("import numpy as np\nx = np.sum", "import numpy as np\nx = np.mean", False),
        ("from numpy import sum\nx = sum", "from math import sum\nx = sum", False),
    ],
)
def test_what_code_does_changes_its_digest(one: str, other: str, same: bool, tmp_path: Path) -> None:
    for name, source in (("one", one), ("other", other)):
        (tmp_path / f"{name}.py").write_text(source)
    digests = [code_digest([tmp_path / f"{name}.py"]) for name in ("one", "other")]
    assert (digests[0] == digests[1]) == same


def reachable(start: str) -> set[str]:
    """The library's modules that one imports, directly or not, but through none of `INERT`; relative to the library."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen or name in INERT or name.split("/")[0] in INERT:
            continue
        seen.add(name)
        imported = {each for each in named_imports(LIBRARY / name, LIBRARY.parent) if not each.endswith("__init__.py")}
        waiting += [each.removeprefix(f"{LIBRARY.name}/") for each in imported if each.startswith(LIBRARY.name)]
    return seen


@pytest.mark.parametrize("name", registry.RUNTIMES)
def test_a_runtime_lists_the_code_that_computes(name: registry.Name) -> None:
    """From the imports: a module that is added to what embeds must be listed, or its changes would go unnoticed."""
    own = reachable(f"runtimes/{name}.py") | {"extraction/extractor.py", "extraction/company.py"}
    if name == "openvino":
        own.discard("runtimes/quantization.py")  # listed for int8 alone
    else:
        own.discard("networks/openvino_setup.py")  # backbones converts with it; what Keras computes has no part of it
    assert set(registry.RUNTIMES[name].CODE) == own
    assert reachable("runtimes/quantization.py") == {"runtimes/quantization.py", "networks/openvino_setup.py"}


def test_other_lists_of_code_name_what_is_there() -> None:
    for name in (*frozen_outputs.CODE, *finetune.DECIDES):
        assert (LIBRARY / name).is_file(), name
    assert quantization.__file__
