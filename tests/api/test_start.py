"""How the server starts, or does not."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.api import server as launch
from lookalike.api.settings import Settings
from lookalike.base.errors import LookalikeError
from tests.helpers.served_collection import Where

pytestmark = pytest.mark.slow  # servers of their own


@pytest.fixture
def signals() -> Iterator[None]:
    """Those that a server in this process takes are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_network_that_cannot_be_loaded_ends_the_server(own: Where) -> None:
    (own.folder / "model/network.xml").write_bytes(b"broken")
    said: list[str] = []
    with pytest.raises(LookalikeError, match=r"model.*dvc repro"):
        launch.run(own.settings(), "127.0.0.1", 0, said.append, log=False)
    assert [line.partition(" on ")[0] for line in said] == ["listening"]


@pytest.mark.parametrize(
    ("host", "word", "warned"),
    [("0.0.0.0", "", True), ("pictures.example", "", True), ("0.0.0.0", "0123456789abcdef", False), ("::1", "", False)],
)
def test_who_lets_anybody_in_is_warned(tmp_path: Path, host: str, word: str, warned: bool) -> None:
    said: list[str] = []
    with pytest.raises(LookalikeError, match="none"):  # it goes no further than the index
        launch.run(Settings(tmp_path / "none", token=word), host, 0, said.append)
    assert len(said) == warned and all(f"anybody who reaches {host} can" in line for line in said)
    assert not warned or "set LOOKALIKE_TOKEN" in said[0]


def test_a_file_without_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(LookalikeError, match=r"/token holds no token; .*openssl rand -hex 16"):
        launch.token(tmp_path / "token")
    (tmp_path / "token").write_bytes(b"caf\xe9")
    with pytest.raises(LookalikeError, match=r"/token is not UTF-8 \(.* at byte 3\); .*openssl rand -hex 16"):
        launch.token(tmp_path / "token")
