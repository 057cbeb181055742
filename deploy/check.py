"""Build the image for real, start it, ask it, and say what is in it.

Needs no Docker engine and no base image: Debian's buildah under root, on a base that debootstrap makes
(apt-get install buildah debootstrap).

python deploy/check.py                        deploy/Dockerfile: `make image`
python deploy/check.py --space served         deploy/space/Dockerfile, with the bundle `served`

Prints one JSON object. Exits 0 if all is well, 1 if not, 3 where it cannot be done here. What buildah has built already
it takes from its store.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "only-for-this-check"  # noqa: S105
NEVER = ("tensorflow", "keras", "dvc", "sklearn", "scipy", "nncf", "matplotlib", "pip")
DIGIT = "3/digit_0003.png"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine, whatever proxy is set


def run(*command: str, **more: Any) -> str:
    """What a command prints; its errors are shown as they come."""
    done = subprocess.run(command, check=True, text=True, **{"stdout": subprocess.PIPE, **more})
    return (done.stdout or "").strip()


def base(dockerfile: Path) -> str:
    """The local name of the base: Debian of the Dockerfile's version, made by debootstrap if it is not there."""
    version = re.findall(r"^ARG BASE=debian:(\d+\.\d+)-slim$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)[0]
    name = f"localhost/lookalike-base:{version}"
    if name in run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        return name
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        mirror = os.environ.get("MIRROR", "http://deb.debian.org/debian")
        run("debootstrap", "--variant=minbase", "bookworm", str(root), mirror, stdout=sys.stderr)
        found = (root / "etc/debian_version").read_text(encoding="utf-8").strip()
        if found != version:
            sys.exit(f"the mirror has Debian {found}, {dockerfile} names {version}; change it there")
        container = run("buildah", "from", "scratch")
        run("buildah", "add", "--quiet", container, str(root), "/")
    run("buildah", "commit", "--quiet", "--rm", container, name)
    return name


def build(dockerfile: Path, context: Path, image: str, *options: str) -> None:
    """Build an image as `docker build` would. BUILD_OPTIONS are buildah's, -v for a certificate say."""
    more = os.environ.get("BUILD_OPTIONS", "").split()
    run("buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers", "--build-arg",
        f"BASE={base(dockerfile)}", "--file", str(dockerfile), "--tag", image, *options, *more, str(context),
        stdin=subprocess.DEVNULL, stdout=sys.stderr)  # fmt: skip


@contextmanager
def container_of(image: str) -> Iterator[str]:
    """A container of an image, and taken away again."""
    container = run("buildah", "from", "--pull-never", image)
    try:
        yield container
    finally:
        run("buildah", "rm", container)


@contextmanager
def running(
    container: str, command: list[str], environment: dict[str, str]
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The command, under way in the container: its process, and buildah's."""
    given = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    whole = ["buildah", "run", "--isolation", "chroot", *given, container, "--", *command]
    outer = subprocess.Popen(whole, stdout=sys.stderr)
    inner = 0
    try:
        inner = waited(lambda: innermost(outer.pid, Path(command[0]).name), "the process to start", outer)
        yield inner, outer
    finally:
        if outer.poll() is None:
            os.kill(inner or outer.pid, signal.SIGTERM)
            outer.wait(60)


def innermost(parent: int, name: str) -> int:
    """The process under `parent`, or under one of those, whose arguments name the command; 0 while there is none."""
    files = Path(f"/proc/{parent}/task").glob("*/children")  # any of its threads may have started it
    for child in [child for file in files for child in file.read_text(encoding="utf-8").split()]:
        try:
            words = Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8").split("\0")
            if "buildah" not in " ".join(words[:1]) and any(Path(word).name == name for word in words[:2]):
                return int(child)
            found = innermost(int(child), name)
        except OSError:
            continue
        if found:
            return found
    return 0


def waited(
    look: Callable[[], Any], what: str, process: "subprocess.Popen[bytes] | None" = None, seconds: float = 120
) -> Any:
    """What `look` gives, as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            sys.exit(f"it ended with {process.returncode} while waiting for {what}")
        try:
            found = look()
        except urllib.error.HTTPError as error:
            if error.code != 503:  # not ready yet
                raise
            found = None
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.05)
    sys.exit(f"no sign of {what} in {seconds:g} s")


def ask(path: str, content: bytes | None = None, *, port: int = 8000, token: str = TOKEN) -> bytes:
    """A GET, or a POST of a picture."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", content, headers)
    with DIRECT.open(request, timeout=30) as answer:
        return bytes(answer.read())


def user_of(process: int) -> int:
    """The user id under which a process runs."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)[0])


def must(holds: bool, what: str) -> None:
    """Go on only if something holds."""
    if not holds:
        sys.exit(f"not so: {what}")


def normal(name: str) -> str:
    """A distribution's name, as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def contents(container: str, requirements: Path) -> dict[str, Any]:
    """What is in the image: sizes, and the Python packages, which must be those that are pinned."""
    root = Path(run("buildah", "mount", container))
    pinned = {
        (normal(name), version)
        for name, version, marker in re.findall(
            r"^([\w.-]+)==(\S+)(?: ; (.*?))? \\$", requirements.read_text(encoding="utf-8"), re.MULTILINE
        )
        if "== 'win32'" not in marker
    }
    found = set()
    for each in root.rglob("*.dist-info"):
        name, version = each.name.removesuffix(".dist-info").split("-")
        found.add((normal(name), version))
    must(found - {("lookalike", "0.1.0")} == pinned, f"the packages are {requirements}'s: {sorted(found ^ pinned)}")
    for name in NEVER:
        must(not list(root.glob(f"opt/**/site-packages/{name}")), f"{name} is not in the image")
    sizes = {name: size(root / path) for name, path in
             {"all": "", "packages": "opt/lookalike", "bundle": "bundle", "app": "app"}.items()
             if (root / path).exists()}  # fmt: skip
    run("buildah", "umount", container)
    return {"packages": len(found), "MB": sizes}


def size(folder: Path) -> int:
    """Megabytes of all files."""
    return round(sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6)


def compressed(image: str) -> int:
    """Megabytes that a registry would send."""
    with tempfile.TemporaryDirectory() as folder:
        run("buildah", "push", "--quiet", image, f"oci:{folder}/image", stderr=sys.stderr)
        return size(Path(folder) / "image/blobs")


def settings(image: str) -> dict[str, Any]:
    """What the image says of how it is run."""
    found: dict[str, Any] = json.loads(run("buildah", "inspect", "--type", "image", image))["Docker"]["config"]
    return found


def check_server() -> dict[str, Any]:
    """Build the image, start what it would start, and ask it with a digit."""
    image = "localhost/lookalike"
    build(ROOT / "deploy/Dockerfile", ROOT, image, "--ignorefile", str(ROOT / "deploy/Dockerfile.dockerignore"))
    said = settings(image)
    with container_of(image) as container:
        report = contents(container, ROOT / "requirements/container.txt")
        digit = thumbnail(container, DIGIT)
        start = time.perf_counter()
        with running(container, said["Entrypoint"], {"LOOKALIKE_TOKEN": TOKEN}) as (process, outer):
            must(bool(waited(lambda: ask("/health"), "/health", outer)), "/health is answered")
            report["seconds to /health"] = round(time.perf_counter() - start, 1)
            ready = json.loads(waited(lambda: ask("/ready"), "/ready", outer))
            report |= {"seconds to /ready": round(time.perf_counter() - start, 1), "images": ready["images"]}
            report["user"] = user_of(process)
            must(report["user"] not in (0, os.getuid()), "it does not run as root")
            start = time.perf_counter()
            hits = json.loads(ask("/search?k=3", digit))["hits"]
            report["search"] = {"ms": round((time.perf_counter() - start) * 1000), "hits": hits}
            must(hits[0]["path"] == DIGIT, "a thumbnail of a digit finds that digit")
            similar = json.loads(ask(f"/items/{hits[0]['id']}/similar?k=3"))["hits"]
            report["similar"] = [hit["path"] for hit in similar]
            must([hit["label"] for hit in similar] == [hits[0]["label"]] * 3, "its like are of its class")
            must(refused("/search", digit, TOKEN[::-1]) == 401, "another token is refused")
            added = json.loads(ask("/items?label=new&name=tom.jpg", digit))
            must(added["path"] == "new/tom.jpg", "a picture is added")
            must(b"process_resident_memory_bytes" in ask("/metrics"), "figures are shown")
            memory = re.findall(rb"^process_resident_memory_bytes (\S+)", ask("/metrics"), re.MULTILINE)
            report["resident MB"] = round(float(memory[0]) / 1e6)
            must(health(container, said) == 0, "HEALTHCHECK says it is well")
            os.kill(process, signal.SIGTERM)
            must(outer.wait(60) == 0, "SIGTERM ends it, with 0")
        must(health(container, said) == 1, "HEALTHCHECK says when it is not")
    return {"image": image, **report, "compressed MB": compressed(image)}


def thumbnail(container: str, path: str) -> bytes:
    """The picture of an image, as the bundle in the container has it."""
    file = Path(run("buildah", "mount", container)) / "bundle/thumbnails/thumbnails.sqlite"
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)
    found = connection.execute("SELECT content FROM thumbnails WHERE path = ?", [path]).fetchone()
    connection.close()
    run("buildah", "umount", container)
    must(found is not None, f"the bundle has a picture of {path}")
    return bytes(found[0])


def refused(path: str, content: bytes, token: str) -> int:
    """The status of a request that is to be refused."""
    try:
        ask(path, content, token=token)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def health(container: str, said: dict[str, Any]) -> int:
    """What the image's HEALTHCHECK exits with, run in the container."""
    command = said["Healthcheck"]["Test"]
    must(command[0] == "CMD", "HEALTHCHECK is a command without a shell")
    return subprocess.run(["buildah", "run", "--isolation", "chroot", container, "--", *command[1:]],
                          check=False, stderr=subprocess.DEVNULL).returncode  # fmt: skip


def check_space(bundle: Path) -> dict[str, Any]:
    """Put a Space together, build its image, and get its page."""
    image = "localhost/lookalike-space"
    with tempfile.TemporaryDirectory() as folder:
        run(str(ROOT / "deploy/space/assemble.sh"), str(bundle), folder)
        build(Path(folder) / "Dockerfile", Path(folder), image)
    with container_of(image) as container:
        report = contents(container, ROOT / "requirements/space.txt")
        start = time.perf_counter()
        with running(container, settings(image)["Cmd"], {}) as (process, outer):
            must(
                waited(lambda: ask("/_stcore/health", port=7860), "the page", outer) == b"ok",
                "the page's server is well",
            )
            report["seconds to the page"] = round(time.perf_counter() - start, 1)
            must(b"<title>" in ask("/", port=7860), "there is a page")
            report["user"] = user_of(process)
            must(report["user"] == 1000, "it runs as user 1000")
            if os.environ.get("HOLD"):  # to look at it with a browser
                time.sleep(float(os.environ["HOLD"]))
    return {"image": image, **report, "compressed MB": compressed(image)}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--space", type=Path, metavar="BUNDLE", help="check the Space's image, with this bundle")
    given = parser.parse_args()
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        print(f"cannot be done here: {', '.join(missing) or 'root'} is missing", file=sys.stderr)
        sys.exit(3)
    print(json.dumps(check_space(given.space.resolve()) if given.space else check_server(), indent=2))


if __name__ == "__main__":
    main()
