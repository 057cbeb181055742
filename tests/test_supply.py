"""What is installed is what was tested: every package pinned and hashed, every action of the workflows too."""

import re
from pathlib import Path

import pytest
from import_graph import ROOT
from only_pinned import normal, pins

COMPILED = sorted(
    path for folder in (ROOT, ROOT / "docker", ROOT / "space") for path in folder.glob("requirements*.txt")
)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
# A version that is too new for Python 3.11 may be named; the .in file says why.
NAME = re.compile(r"([A-Za-z][\w.-]*)(\[[\w,-]+\])?(<[\d.]+)?( ; .+)?")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(requirements: Path) -> list[str]:
    """Every requirement of a compiled file with the lines that belong to it; comments left out."""
    lines = [line for line in requirements.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines))


@pytest.mark.parametrize("requirements", COMPILED, ids=named)
def test_every_requirement_is_pinned_and_hashed(requirements: Path) -> None:
    for block in blocks(requirements):
        first, *hashes = [line.removesuffix(" \\") for line in block.splitlines()]
        assert re.fullmatch(r"[a-z0-9][\w.-]*==[\w.!+]+( ; .+)?", first), first
        assert hashes, first
        for line in hashes:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line), f"{first}: {line}"


@pytest.mark.parametrize("requirements", COMPILED, ids=named)
def test_what_is_asked_for_is_a_name_and_is_compiled(requirements: Path) -> None:
    wanted = requirements.with_suffix(".in").read_text().splitlines()
    command = f"uv pip compile --generate-hashes --universal --fork-strategy fewest --python-version 3.11 " \
              f"{named(requirements.with_suffix('.in'))} -o {named(requirements)}"  # fmt: skip
    assert f"#   {command}" in wanted
    assert f"#    {command}" in requirements.read_text()
    pinned = set(pins(requirements))
    for line in (line for line in wanted if not line.startswith(("#", "-"))):
        found = NAME.fullmatch(line)
        assert found, f"{line}: names only; versions belong into {requirements.name}"
        assert normal(found[1]) in pinned, line


@pytest.mark.parametrize("requirements", COMPILED, ids=named)
def test_two_files_never_pin_two_versions(requirements: Path) -> None:
    if requirements.name == "requirements-audit.txt":
        pytest.skip("it is installed in an environment of its own")
    common = pins(ROOT / "requirements.txt")
    assert {name: common[name] for name in pins(requirements) if name in common}.items() <= pins(requirements).items()


def test_no_address_and_no_path_of_a_machine_is_in_them() -> None:
    for requirements in COMPILED:
        assert not re.search(r"://|file:|index-url|find-links|trusted-host|^/", requirements.read_text(), re.MULTILINE)


def test_nothing_is_installed_without_its_hash() -> None:
    """Each `pip install` of the recipes asks for hashes, or installs this project and nothing else."""
    recipes = [ROOT / "Makefile", ROOT / "Dockerfile", ROOT / "space/Dockerfile", *WORKFLOWS]
    text = "\n".join(path.read_text().replace("\\\n", " ") for path in recipes)
    lines = [line for line in text.splitlines() if not line.startswith(("#", "INSTALL"))]
    found = [re.findall(r"(?:pip\S* (?:--python \S+ )?install|\$\(INSTALL\)) [^&|;]*", line) for line in lines]
    commands = [command for each in found for command in each]
    assert len(commands) >= 9
    for command in commands:
        assert "--require-hashes" in command or "--no-deps" in command, command


def test_the_promises_name_tests_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    named_tests = re.findall(r"`(tests/\w+\.py)`", page)
    assert len(named_tests) >= 8
    for path in named_tests:
        assert (ROOT / path).is_file(), path
    for target in re.findall(r"^make (\w+)", page, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
