"""Every key of params.yaml decides what it is said to decide: tried on a small data set, and told in docs/params.md."""

import multiprocessing
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from lookalike.base.errors import LookalikeError
from proof.effects import page, run, trials
from proof.effects.stage_runner import GIVEN, Bench
from tests.helpers.import_graph import ROOT
from tests.helpers.small_run import RE_RUN

if "forkserver" not in multiprocessing.get_all_start_methods():
    pytest.skip("needs processes that are copied from one that is warm, which Windows has not", allow_module_level=True)

PAGE = run.PAGE.read_text()
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.mark.slow
def test_every_key_has_the_effect_that_the_page_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command `python proof/effects/run.py --check`; minutes of work, so all that needs it is in one test."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)  # or TensorFlow cannot try bfloat16
    measured, text = run.measured(tmp_path, quick=True)
    assert [effect.problem() for effect in measured if effect.problem()] == []
    assert page.stale(PAGE, text) == [], "mend it: python proof/effects/run.py"


@pytest.mark.slow
def test_a_process_ends_with_its_own_status_whoever_else_waits_for_one(tmp_path: Path) -> None:
    """Of every hundred, three ended with 255, which multiprocessing says where two threads read one status."""
    bench = Bench(ROOT, tmp_path, warm=[])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: bench.process(sys.exit, number % 3), range(150)))
    assert found == [number % 3 for number in range(150)]


def test_the_page_has_every_key_with_its_default() -> None:
    rows = page.rows(PAGE)
    for name, value in page.leaves(PARAMS).items():
        assert name in rows, f"{name} is not in docs/params.md; write it anew: python proof/effects/run.py"
        assert rows[name][0] == page.code(value), name
    assert set(rows) == set(page.leaves(PARAMS))


def test_dvc_re_runs_the_stages_that_the_page_names() -> None:
    """What test_pipeline.py sees DVC do to a small project, against what was worked out from inputs and settings."""
    seen = {next(iter(change)).replace("__", "."): stages for change, stages in RE_RUN}
    del seen["index.hnsw.neighbors"]  # the page tries it where the index is a graph
    rows = page.rows(PAGE)
    assert {name: rows[name][3].split(", ") for name in seen} == seen


STAGE = """
import sys
from pathlib import Path
import yaml

settings = yaml.safe_load(Path("params.yaml").read_text())
mine = settings["first"]
Path(sys.argv[1]).write_text(f"{mine['read']} {mine['speed'] if mine['read'] == 'leak' else ''}")
if mine["read"] == "fail":
    sys.exit("first: error: a reason")
"""
DVC = """
stages:
  first:
    cmd: python first.py out
    params: [first]
    deps: [first.py]
    outs: [out]
  second:
    cmd: python second.py out last
    deps: [second.py, out]
    outs: [last]
"""


@pytest.mark.slow
def test_a_setting_that_does_not_what_it_is_declared_to_do_is_found(tmp_path: Path) -> None:
    project, folder = tmp_path / "project", tmp_path / "folder"
    (folder / GIVEN).mkdir(parents=True)
    project.mkdir()
    (project / "dvc.yaml").write_text(DVC)
    (project / "first.py").write_text(textwrap.dedent(STAGE))
    (project / "second.py").write_text("import shutil, sys\nshutil.copyfile(*sys.argv[1:])\n")
    params = {"first": {"read": "a", "unread": 1, "speed": 1}}
    tried = {
        "first.read": trials.Key("b"),
        "first.unread": trials.Key(2),  # said to decide results, and does not
        "first.speed": trials.Key(2, decides="nothing"),
    }
    bench = Bench(project, folder, warm=[])
    found = run.measure(bench, params, tried, 2)
    assert [effect.ran for effect in found] == [{"first": ["out"], "second": ["last"]}, {"first": []}, {"first": []}]
    assert [bool(effect.problem()) for effect in found] == [False, True, False]
    quick = run.measure(bench, params, tried, 2, quick=True)
    assert [effect.ran for effect in quick] == [{"first": ["out"], "second": []}, {"first": []}, {"first": []}]
    assert "first.unread: 1 -> 2 re-ran first and changed no artifact" in found[1].problem()
    leaking = {"first": {"read": "leak", "unread": 1, "speed": 1}}
    problem = run.measure(bench, leaking, tried, 1)[2].problem()
    assert problem == "first.speed: 1 -> 2 must change nothing and changed out, last"
    failing = run.measure(bench, params, tried | {"first.read": trials.Key("fail")}, 1)[0].problem()
    assert "first failed (" in failing and failing.endswith("params.yaml): first: error: a reason")


def test_a_move_of_the_features_by_more_than_rounding_is_found() -> None:
    key = trials.Key(16, decides="last bits")
    ran = {"extract": ["data/features"]}
    assert page.Effect("extract.batch_size", 32, key, ran, {"extract": 2}, moved=1e-7).problem() == ""
    assert "more than rounding" in page.Effect("x", 32, key, ran, {"extract": 2}, moved=0.01).problem()


def test_a_key_that_nothing_tries_is_named_with_what_to_add(tmp_path: Path) -> None:
    tried = dict.fromkeys(page.leaves(PARAMS), trials.Key(1))
    run.check_complete(PARAMS, tried)
    with pytest.raises(LookalikeError, match=r'params.yaml has extract\.new, .*"extract\.new": Key\('):
        run.check_complete(PARAMS | {"extract": PARAMS["extract"] | {"new": 1}}, tried)
    with pytest.raises(LookalikeError, match=r"tries index\.gone, which params.yaml has no more"):
        run.check_complete(PARAMS, tried | {"index.gone": trials.Key(1)})


def test_a_page_that_is_out_of_date_is_found() -> None:
    assert page.stale(PAGE, PAGE) == []
    row = next(line for line in PAGE.splitlines() if line.startswith("| `fraction`"))
    cells = row.split(" | ")
    other = PAGE.replace(row, " | ".join([*cells[:4], "evaluate", cells[5]]))
    assert page.stale(PAGE, other) == [
        "protocol.fraction: stages: the page says evaluate, benchmark, but it is evaluate"
    ]
    assert page.stale(PAGE, PAGE.replace(f"{row}\n", "")) == [
        "protocol.fraction: on the page, but no longer in params.yaml"
    ]
