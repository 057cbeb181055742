"""Many requests at once: batches, a full queue, a signal."""

import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lookalike.api import problems
from lookalike.api.service import Service
from lookalike.api.settings import Settings
from lookalike.collection.query import Query
from proof.patience import patience
from tests.helpers.served_collection import SIZE, Server, Where, as_sent, is_problem, saved, serving

pytestmark = pytest.mark.slow  # servers of their own


def test_pictures_that_come_together_are_embedded_together(slow: Where) -> None:
    contents = [saved("PNG", (40 + number, 30)) for number in range(16)]
    alone = slow.open()
    with serving(slow, "--batch=8") as server:
        expected = [as_sent(alone.search(content, Query(5))) for content in contents]
        calls, pictures = (server.figure(f"lookalike_batch_size_{what}") for what in ("count", "sum"))
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda content: server.search(content, k=5).json()["hits"], contents))
        assert found == expected
        assert server.figure("lookalike_batch_size_sum") - pictures == 16
        assert server.figure("lookalike_batch_size_count") - calls < 16
        assert server.figure('lookalike_batch_size_bucket{le="8.0"}') == server.figure("lookalike_batch_size_count")


def test_a_vector_does_not_depend_on_its_company(slow: Where) -> None:
    service = Service(Settings(slow.index, slow.folder / "model", slow.folder / "changes"))
    service.open()
    embed = service._load(slow.open().gallery.embedding)
    pixels = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)
    alone = np.concatenate([embed(pixels[[row]]) for row in range(16)])
    for size in (2, 3, 8, 16):
        np.testing.assert_allclose(embed(pixels[:size]), alone[:size], rtol=0, atol=1e-6 * np.abs(alone).max())
    service.close()


def test_past_the_queue_a_request_is_turned_away(slow: Where) -> None:
    with serving(slow, "--queue=3", "--batch=1") as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.search(slow.content(), k=1), range(24)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 24
        for answer in refused:
            assert is_problem(answer, problems.QUEUE_FULL) and int(answer.headers["retry-after"]) >= 1
        assert server.search(slow.content(), k=1).status_code == 200


def test_a_signal_lets_what_is_under_way_end(slow: Where) -> None:
    server = Server(slow, "--batch=1")
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.search, slow.content(), k=1) for _ in range(6)]
        while server.figure("lookalike_queries_under_way") + sum(answer.done() for answer in answers) < 6:
            pass  # one that has not arrived yet would be turned away
        server.process.send_signal(signal.SIGTERM)
        assert {answer.result().status_code for answer in answers} == {200}
    assert server.process.wait(patience(60)) == 0
