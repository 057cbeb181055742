"""What is deployed: the images' recipes agree with the project, and their packages suffice for what they serve.

The images themselves are built and asked by deploy/check.py, `make image`, which takes minutes.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lookalike.cli import app
from proof.patience import patience
from tests.helpers import small_collection
from tests.helpers.import_graph import ROOT
from tests.helpers.only_pinned import hook, normal, pins

pytestmark = pytest.mark.slow  # servers with the pinned packages alone

DOCKERFILES = [ROOT / "deploy/Dockerfile", ROOT / "deploy/space/Dockerfile"]
SERVING = [ROOT / "requirements/container.txt", ROOT / "requirements/space.txt"]
PAGE = (ROOT / "docs/deploy.md").read_text()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 24 pictures."""
    folder = tmp_path_factory.mktemp("small")
    built = small_collection.build(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(folder / "cache"))
        done = CliRunner().invoke(app, ["bundle", str(folder / "served"), *built.options])
    assert done.exit_code == 0, done.output
    return folder / "served"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction and what it is given, continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def served(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of the last stage."""
    every = instructions(dockerfile)
    return every[max(number for number, (name, _) in enumerate(every) if name == "FROM") :]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def get(address: str, content: bytes | None = None) -> bytes:
    request = urllib.request.Request(address, content, {"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=patience(60)) as answer:
        return answer.read()


@contextmanager
def running(command: list[str], environment: dict[str, str], look: str, log: Path) -> Iterator[None]:
    """A server, once it answers at `look`."""
    with log.open("w") as out:
        process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=log.parent, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + patience(120)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            assert process.poll() is None, log.read_text()
            try:
                get(look)
                break
            except OSError:
                continue
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(patience(60))


# --- the recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requirements", SERVING, ids=lambda path: path.stem)
def test_what_serves_is_pinned_as_it_is_tested(requirements: Path) -> None:
    tested = pins(ROOT / "requirements/serve.txt") | pins(ROOT / "requirements.txt")
    pinned = pins(requirements)
    assert {name: tested.get(name) for name in pinned} == pinned, "compile it anew: make lock"
    every = requirements.read_text().count("==")
    assert requirements.read_text().count("\\\n    --hash=sha256:") >= every - requirements.read_text().count("== '")
    assert not {"tensorflow", "keras", "dvc", "scikit-learn", "scipy", "nncf", "matplotlib", "pip"} & set(pinned)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][requirements.stem]
    assert {normal(re.match(r"[\w-]+", name).group()) for name in wanted} <= set(pinned)


def test_the_recipes_name_versions_that_the_project_has() -> None:
    bases = {value for path in DOCKERFILES for name, value in instructions(path) if name == "ARG"}
    assert len(bases) == 1
    assert re.fullmatch(r"BASE=debian:\d+\.\d+-slim", bases.pop())
    # Of setuptools the version and both hashes are taken from requirements.txt.
    taken = re.search(r"^setuptools==.*\n.*\n.*\n", (ROOT / "requirements.txt").read_text(), re.MULTILINE).group()
    assert taken.splitlines()[1].startswith("    --hash=")
    assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", taken.splitlines()[2])
    assert "grep --after-context 2 '^setuptools=='" in DOCKERFILES[0].read_text()


def test_what_the_dockerfile_copies_is_there_and_not_ignored(tmp_path: Path) -> None:
    lines = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    let_through = [line[1:] for line in lines if line.startswith("!")]
    for pattern in let_through:
        assert list(ROOT.glob(pattern)), pattern
    copied = [value.split()[:-1] for name, value in instructions(ROOT / "deploy/Dockerfile") if name == "COPY"]
    for source in [source for sources in copied if not sources[0].startswith("--from") for source in sources]:
        assert source == "." or source in let_through, source
    # What DVC reads of the stages that the recipe runs.
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ("download", "preprocess", "model", "extract", "index"):
        for path in graph[stage]["deps"]:
            if not path.startswith(("$", "data/raw", "data/processed", "data/model", "data/features")):
                assert any(path == each or path.startswith(f"{each}/") for each in let_through), path
    assert {".dvc/config", "dvc.yaml", "dvc.lock", "params.yaml", "storage"} <= set(let_through)


def test_nobody_is_root_and_health_is_looked_at() -> None:
    for path in DOCKERFILES:
        last = dict(served(path))
        assert int(last["USER"]) > 0
        assert not any("pip" in value for name, value in served(path) if name == "RUN")
    last = dict(served(ROOT / "deploy/Dockerfile"))
    assert "/opt/lookalike/health.py" in last["HEALTHCHECK"]
    command = json.loads(last["ENTRYPOINT"])
    assert command[:2] == ["lookalike", "serve"]
    known = {option for parameter in app.commands["serve"].params for option in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= known


def test_health_tells_well_from_ill(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    ask = [sys.executable, str(ROOT / "deploy/health.py"), f"{address}/"]
    proxy = {"http_proxy": "http://127.0.0.1:9"}  # is not asked
    down = subprocess.run(ask, env={**os.environ, **proxy}, capture_output=True, text=True, check=False)
    assert (down.returncode, down.stderr.startswith(address)) == (1, True)
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", address.rpartition(":")[2]]
    with running(command, {}, address, tmp_path / "log"):
        subprocess.run(ask, env={**os.environ, **proxy}, check=True)


def test_the_front_matter_of_the_space() -> None:
    _, head, _ = (ROOT / "deploy/space/README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(head)
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {said["colorFrom"], said["colorTo"]} <= colours
    assert said["sdk"] == "docker"
    assert said["license"] == "mit"
    assert len(said["short_description"]) <= 60
    assert not said["emoji"].isascii()
    exposed = dict(served(ROOT / "deploy/space/Dockerfile"))["EXPOSE"]
    assert f'PORT = "{said["app_port"]}"' in (ROOT / "deploy/space/app.py").read_text()
    assert int(exposed) == said["app_port"]
    assert set(said) <= {"title", "emoji", "colorFrom", "colorTo", "sdk", "app_port", "pinned", "license",
                         "short_description"}  # fmt: skip


def test_the_page_names_files_targets_and_options_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`|^make (\w+)", PAGE, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    for path in re.findall(r"`((?:deploy|requirements)/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path
    for command, rest in re.findall(r"^lookalike (\w+)(.*)$", PAGE, re.MULTILINE):
        known = {option for parameter in app.commands[command].params for option in parameter.opts}
        assert set(re.findall(r"(--[a-z-]+)", rest)) <= known, rest


# --- the packages suffice -------------------------------------------------------------------------------------------


def test_a_bundle_is_served_with_the_pinned_packages_alone(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install -r requirements/serve.txt")
    environment = {**hook(tmp_path, ROOT / "requirements/container.txt"), "LOOKALIKE_CACHE": str(tmp_path / "cache")}
    environment["LOOKALIKE_TOKEN"] = ""
    picture = tmp_path / "photo.jpg"
    small_collection.coloured("green", 999).save(picture)
    hidden = subprocess.run([sys.executable, "-c", "import tensorflow"], env={**os.environ, **environment}, check=False,
                            capture_output=True, text=True)  # fmt: skip
    assert "No module named 'tensorflow'" in hidden.stderr
    where = ["--index", str(bundle / "index"), "--model", str(bundle / "model"), "--changes", str(tmp_path / "changes")]
    searched = subprocess.run([sys.executable, "-m", "lookalike.cli", "search", str(picture), "-k3", *where],
                              env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE,
                              text=True)  # fmt: skip
    assert [json.loads(line)["label"] for line in searched.stdout.splitlines()] == ["green"] * 3
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "lookalike.cli", "serve", "--port", address.rpartition(":")[2], *where]
    with running(command, environment, f"{address}/ready", tmp_path / "log"):
        hits = json.loads(get(f"{address}/search?k=3", picture.read_bytes()))["hits"]
        assert [hit["label"] for hit in hits] == ["green"] * 3
        assert len(json.loads(get(f"{address}/items/{hits[0]['id']}/similar?k=2"))["hits"]) == 2
        for kind in ("image", "thumbnail"):  # a bundle has thumbnails, which stand for the originals
            assert get(f"{address}/items/{hits[0]['id']}/{kind}")[:2] == b"\xff\xd8"
        assert json.loads(get(f"{address}/items?label=new", picture.read_bytes()))["label"] == "new"
        assert b"process_resident_memory_bytes" in get(f"{address}/metrics")
        assert json.loads(get(f"{address}/openapi.json"))["info"]["title"] == "Lookalike"


def test_the_space_shows_a_bundle_with_the_pinned_packages_alone(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("streamlit", reason="Streamlit is not installed: pip install -r requirements/serve.txt")
    assemble = ROOT / "deploy/space/assemble.sh"
    done = subprocess.run([assemble, bundle, tmp_path / "space"], check=True, capture_output=True)
    assert not done.stderr
    copied = [value.split() for name, value in instructions(ROOT / "deploy/space/Dockerfile") if name == "COPY"]
    for source in [words[0] for words in copied if not words[0].startswith("--from")]:
        assert (tmp_path / "space" / source).exists(), source
    environment = {**hook(tmp_path, ROOT / "requirements/space.txt"), "LOOKALIKE_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = environment["PYTHONPATH"].replace(str(ROOT), str(tmp_path / "space"))
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        "sys.argv = ['app.py', '--index=bundle/index', '--model=bundle/model']\n"
        "page = AppTest.from_file('lookalike/ui/app.py', default_timeout=600).run()\n"
        "assert not page.exception and not page.error, page\n"
        "assert '24 images in 3 classes' in page.caption[0].value\n"
        "from pathlib import Path; from lookalike.ui.session import Opened, Places, Query, start_from\n"
        "opened = Opened(Places(*(Path('bundle') / name for name in 'index model changes thumbnails m p'.split())))\n"
        "print(opened.answer(start_from(Path(sys.orig_argv[-1]).read_bytes()), Query(1)).hits[0].label)\n"
        "import lookalike.ui.quality_page"
    )
    small_collection.coloured("red", 999).save(tmp_path / "photo.jpg")
    shown = subprocess.run([sys.executable, "-c", code, tmp_path / "photo.jpg"], env={**os.environ, **environment},
                           cwd=tmp_path / "space", check=False, capture_output=True, text=True)  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == ["red"]
    environment |= {
        "PORT": str(free_port()),
        "SPACE_ID": "somebody/lookalike",
        "SPACE_HOST": "somebody-lookalike.hf.space",
    }
    address = f"http://127.0.0.1:{environment['PORT']}"
    shutil.copy(tmp_path / "sitecustomize.py", tmp_path / "space")
    command = [sys.executable, str(tmp_path / "space/app.py")]
    with running(command, environment, f"{address}/_stcore/health", tmp_path / "log"):
        assert b"<title>" in get(address)
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "somebody-lookalike.hf.space" in said
