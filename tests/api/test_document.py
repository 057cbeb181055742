"""The OpenAPI document and docs/api.md are what the server answers."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from lookalike.api.schema import id_of, path_of_id
from tests.helpers.project import ROOT
from tests.helpers.served_collection import FIRST, Where, answered_here, serving

pytestmark = pytest.mark.slow  # servers of their own


def test_the_document_is_what_the_server_answers(
    where: Where, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_module("lookalike.api.__main__")
    assert not capsys.readouterr().out  # imported, it does nothing
    monkeypatch.setattr(sys, "argv", ["api", "openapi"])
    runpy.run_module("lookalike.api", run_name="__main__")
    document = json.loads(capsys.readouterr().out)
    assert "Problem" in document["components"]["schemas"]

    async def ask(client: httpx.AsyncClient) -> Any:
        return [(await client.get("/openapi.json")).json() for _ in range(2)]

    assert answered_here(where, {}, ask, load=False) == [document, document]
    monkeypatch.setattr(sys, "argv", ["api", "html"])
    with pytest.raises(SystemExit, match=r"python -m lookalike\.api docs, or openapi"):
        runpy.run_module("lookalike.api", run_name="__main__")


def test_the_page_is_what_the_server_says() -> None:
    made = subprocess.run([sys.executable, "-m", "lookalike.api", "docs"], cwd=ROOT, capture_output=True, text=True)
    assert (ROOT / "docs/api.md").read_text() == made.stdout, "python -m lookalike.api docs > docs/api.md"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_examples_of_the_page_run(own: Where) -> None:
    commands = re.findall(r"^```console\n(curl .*?)\n```", (ROOT / "docs/api.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(commands) >= 9
    (own.folder / "data").mkdir()
    (own.folder / "data/raw").symlink_to(own.folder / "raw")
    with serving(own) as server:
        for command in commands:
            if "$LOOKALIKE_TOKEN" in command:
                continue
            command = command.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl -sS --fail ", 1)
            subprocess.run(command, shell=True, check=True, cwd=own.folder, stdout=subprocess.DEVNULL)


def test_every_answer_to_made_up_requests_is_as_documented(own: Where) -> None:
    """Schemathesis, seeded and short."""
    with serving(own, "--no-log") as server:
        config = own.folder / "schemathesis.toml"
        config.write_text("seed = 1\n[generation]\nmax-examples = 12\n[phases.stateful]\nenabled = false\n")
        checks = ("not_a_server_error", "status_code_conformance", "content_type_conformance",
                  "response_headers_conformance", "response_schema_conformance", "unsupported_method")  # fmt: skip
        done = subprocess.run(
            [str(Path(sys.executable).with_name("schemathesis")), f"--config-file={config}", "run",
             f"{server.url}/openapi.json", f"--checks={','.join(checks)}", "--generation-database=none"],
            capture_output=True, text=True, cwd=own.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert server.client.get("/ready").status_code == 200


def test_an_id_is_of_one_path() -> None:
    for path in (FIRST, "ünï/çødé ☃.png", "a" * 300, ""):
        assert path_of_id(id_of(path)) == path
