"""What is installed is what was tested: every package pinned and hashed, every action of the workflows too."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.tags import compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

from requirements.lock import compile_locks, locks
from tests.helpers.import_graph import ROOT
from tests.helpers.only_pinned import PIN, normal, pins
from tests.helpers.package_index import files

COMPILED = [ROOT / "requirements.txt", *sorted((ROOT / "requirements").glob("*.txt"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
# A version that is too new for Python 3.11 may be named; pyproject.toml says why.
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
    assert "#    make lock\n" in requirements.read_text()
    pinned = set(pins(requirements))
    for line in locks()[named(requirements)]:
        found = NAME.fullmatch(line)
        assert found, f"{line}: names only; versions belong into {requirements.name}"
        assert normal(found[1]) in pinned, line


def test_every_extra_and_every_group_has_a_lock() -> None:
    names = {*PROJECT["project"]["optional-dependencies"], *PROJECT["dependency-groups"]}
    assert names == {"serve", "vit", "gpu", "finetune", "s3", "dev", "proof", "audit", "container", "space"}
    assert {named(path) for path in COMPILED} == set(locks())
    assert {named(path) for path in COMPILED} == {"requirements.txt", *(f"requirements/{name}.txt" for name in names)}
    assert locks()["requirements.txt"] == PROJECT["project"]["dependencies"]
    tested = [name for extra in ("finetune", "s3", "serve", "vit") for name in locks()[f"requirements/{extra}.txt"]]
    assert set(locks()["requirements/dev.txt"]) == {*PROJECT["dependency-groups"]["dev"], *tested}


def test_a_lock_shares_versions_with_what_is_installed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What uv is told: one lock for all platforms, hashes, and the versions of locks that are written already."""
    asked: list[tuple[list[str], str]] = []
    monkeypatch.setattr(
        "requirements.lock.subprocess.run", lambda command, **how: asked.append((command, how["input"]))
    )
    compile_locks("uv", ["--upgrade"])
    shared: dict[str, list[str]] = {}
    for (path, wanted), (command, given) in zip(locks().items(), asked, strict=True):
        line = " ".join(command)
        start = "uv pip compile --quiet --generate-hashes --universal --fork-strategy fewest --python-version 3.11 "
        assert line.startswith(f"{start}--custom-compile-command make lock ")
        assert line.endswith(f" --upgrade --output-file {path} -")
        assert given.splitlines() == wanted
        others = re.findall(r"--constraint (\S+)", line)
        assert set(others) <= set(shared)
        shared[path] = others
    main, dev, serve = (f"requirements{name}.txt" for name in ("", "/dev", "/serve"))
    expected = {path: [main] for path in shared} | {main: [], "requirements/audit.txt": []}
    expected |= {"requirements/proof.txt": [main, dev]}
    expected |= {"requirements/container.txt": [main, serve], "requirements/space.txt": [main, serve]}
    assert shared == expected


@pytest.mark.parametrize("requirements", COMPILED, ids=named)
def test_two_files_never_pin_two_versions(requirements: Path) -> None:
    if requirements.name == "audit.txt":
        pytest.skip("it is installed in an environment of its own")
    common = pins(ROOT / "requirements.txt")
    assert {name: common[name] for name in pins(requirements) if name in common}.items() <= pins(requirements).items()


def test_no_address_and_no_path_of_a_machine_is_in_them() -> None:
    for requirements in COMPILED:
        assert not re.search(r"://|file:|index-url|find-links|trusted-host|^/", requirements.read_text(), re.MULTILINE)


def test_nothing_is_installed_without_its_hash() -> None:
    """Each `pip install` of the recipes asks for hashes, or installs this project and nothing else."""
    recipes = [ROOT / "Makefile", ROOT / "deploy/Dockerfile", ROOT / "deploy/space/Dockerfile", *WORKFLOWS]
    text = "\n".join(path.read_text().replace("\\\n", " ") for path in recipes)
    lines = [line for line in text.splitlines() if not line.startswith(("#", "INSTALL"))]
    found = [re.findall(r"(?:pip\S* (?:--python \S+ )?install|\$\(INSTALL\)) [^&|;]*", line) for line in lines]
    commands = [command for each in found for command in each]
    assert len(commands) >= 9
    for command in commands:
        assert "--require-hashes" in command or "--no-deps" in command, command


def test_the_promises_name_tests_that_exist() -> None:
    page = (ROOT / "docs/SECURITY.md").read_text()
    named_tests = re.findall(r"`(tests/[\w/.]+)`", page)
    assert len(named_tests) >= 8
    for path in named_tests:
        assert (ROOT / path).exists(), path
    for target in re.findall(r"^make (\w+)", page, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


# --- other platforms --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Platform:
    """A platform that no test runs on: what its markers say, and the names that its wheels may have."""

    markers: dict[str, str]
    names: list[str]

    def needs(self, marker: str) -> bool:
        return not marker or Marker(marker).evaluate({**PYTHON, **self.markers})

    def takes(self, wheel: str) -> bool:
        tags = parse_wheel_filename(wheel)[3]
        ours = {*cpython_tags((3, 12), platforms=self.names), *compatible_tags((3, 12), "cp312", self.names)}
        return not tags.isdisjoint(ours)


def linux(machine: str) -> Platform:
    names = [f"manylinux_2_{minor}_{machine}" for minor in range(5, 37)] + [
        f"manylinux{year}_{machine}" for year in (1, 2010, 2014)
    ]
    markers = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine}
    return Platform(markers, names)


PYTHON = {"python_version": "3.12", "python_full_version": "3.12.0", "implementation_name": "cpython",
          "platform_python_implementation": "CPython", "extra": ""}  # fmt: skip
PLATFORMS = {
    "Linux on x86-64": linux("x86_64"),
    "Linux on Arm": linux("aarch64"),
    "macOS on Apple silicon": Platform(
        {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
        list(mac_platforms((14, 0), "arm64")),
    ),
    "Windows": Platform(
        {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
        ["win_amd64"],
    ),
}
# requirements/gpu.txt is for Linux alone; what develops and proves Lookalike need not run everywhere.
EVERYWHERE = ("requirements.txt", *(f"requirements/{name}.txt" for name in ("serve", "finetune", "s3", "vit")))
SOURCES = {"antlr4-python3-runtime"}  # DVC's, by way of Hydra: Python alone, and its maker publishes no wheel


@pytest.mark.slow
def test_every_pin_has_a_wheel_for_each_platform() -> None:
    """So that no compiler is needed: asks the package index that pip is set to."""
    found = {pin for name in EVERYWHERE for pin in PIN.findall((ROOT / name).read_text())}
    on_the_index = files({normal(name) for name, _, _ in found})
    lacking = [
        f"{name} {version}: {platform}"
        for name, version, marker in sorted(found)
        for platform, about in PLATFORMS.items()
        if name not in SOURCES and about.needs(marker)
        if not any(about.takes(wheel) for wheel in on_the_index[normal(name)] if is_wheel_of(wheel, version))
    ]
    assert not lacking, "\n".join(lacking)
    assert {name for name, _, _ in found} >= SOURCES


def is_wheel_of(file: str, version: str) -> bool:
    return file.endswith(".whl") and file.split("-")[1] == version


def test_a_platform_takes_its_wheels_and_needs_its_pins() -> None:
    """By hand: wheels of one package as their makers name them."""
    wheels = {
        "x-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": ["Linux on x86-64"],
        "x-1-cp312-cp312-manylinux_2_28_aarch64.whl": ["Linux on Arm"],
        "x-1-cp39-abi3-macosx_11_0_universal2.whl": ["macOS on Apple silicon"],
        "x-1-cp312-cp312-macosx_10_13_x86_64.whl": [],
        "x-1-cp311-cp311-win_amd64.whl": [],
        "x-1-py3-none-win_amd64.whl": ["Windows"],
        "x-1-py2.py3-none-any.whl": [*PLATFORMS],
    }
    for wheel, expected in wheels.items():
        assert [name for name, platform in PLATFORMS.items() if platform.takes(wheel)] == expected, wheel
    needed = [name for name, platform in PLATFORMS.items() if platform.needs("sys_platform == 'win32'")]
    assert needed == ["Windows"]
