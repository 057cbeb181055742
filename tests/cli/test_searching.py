"""Searching by the command line, mistakes, and every example of the help."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import click
import pytest

from lookalike import cli
from tests.helpers.pictures import picture
from tests.helpers.platforms import POSIX
from tests.helpers.user_home import COUNT, Home, contents_of

pytestmark = pytest.mark.slow  # DVC, and a process a command


# --- searching ---------------------------------------------------------------------------------------------------


def test_a_picture_is_found_first_by_itself(built_home: Home) -> None:
    done = built_home.do("search", "../photos/bee/3.png", "-k", "5")
    assert done.err == ""
    assert [sorted(hit) for hit in done.hits] == [["cosine", "label", "path", "query", "rank"]] * 5
    assert done.hits[0] | {"cosine": 0} == {
        "query": "../photos/bee/3.png", "rank": 1, "path": "bee/3.png", "label": "bee", "cosine": 0
    }  # fmt: skip
    assert [hit["rank"] for hit in done.hits] == [1, 2, 3, 4, 5]
    cosines = [hit["cosine"] for hit in done.hits]
    assert cosines == sorted(cosines, reverse=True) and 0.9 < cosines[0] <= 1
    assert len(built_home.do("search", "../photos/bee/3.png").hits) == 10
    assert len(built_home.do("search", "../photos/bee/3.png", "-k", str(COUNT)).hits) == COUNT


def test_several_pictures_a_folder_and_standard_input(built_home: Home) -> None:
    both = built_home.do("search", "../photos/cat/1.png", "../photos/0.png", "-k", "2")
    assert [(hit["query"], hit["rank"]) for hit in both.hits] == [
        ("../photos/cat/1.png", 1), ("../photos/cat/1.png", 2), ("../photos/0.png", 1), ("../photos/0.png", 2)
    ]  # fmt: skip
    assert (both.paths[0], both.paths[2]) == ("cat/1.png", "0.png")
    folder = built_home.do("search", "../photos", "-k", "1")
    assert [hit["query"] for hit in folder.hits] == [
        f"../photos/{path}" for path in sorted(contents_of(built_home.photos))
    ]
    assert [f"../photos/{hit['path']}" for hit in folder.hits] == [hit["query"] for hit in folder.hits]
    piped = built_home.do("search", "-", "-k", "2", stdin=(built_home.photos / "cat/1.png").read_bytes())
    assert [hit["query"] for hit in piped.hits] == ["-", "-"] and piped.paths == both.paths[:2]


def test_a_folder_is_searched_without_what_is_hidden_in_it(home: Home) -> None:
    (home.photos / "ant/._0.png").write_bytes(b"what a Mac leaves")
    (home.photos / ".trash").mkdir()
    (home.photos / ".trash/0.png").write_bytes(b"")
    (home.photos / "notes.txt").write_text("no picture")
    assert len(home.do("search", "../photos", "-k", "1").hits) == COUNT


@POSIX
def test_a_table_for_people_and_json_for_programs(built_home: Home) -> None:
    query = "../photos/bee/3.png"
    table = built_home.do("search", query, "-k", "2", "--table").out.splitlines()
    assert re.fullmatch(r" +1 +0\.9\d+ +bee +bee/3\.png", table[0]) and len(table) == 2
    both = built_home.do("search", query, "../photos/0.png", "-k", "2", "--table").out.splitlines()
    assert (both[0], both[1:3], both[3]) == (query, table, "../photos/0.png") and len(both) == 6
    by_default = built_home.do("search", query, "-k", "2").out
    assert by_default == built_home.do("search", query, "-k", "2", "--json").out != "\n".join(table)

    controller, terminal = os.openpty()
    command = [sys.executable, "-m", "lookalike.cli", "search", query, "-k", "2"]
    subprocess.run(command, cwd=built_home.folder, env=built_home.project.environment, stdout=terminal, check=True)
    os.close(terminal)
    assert os.read(controller, 10_000).decode().splitlines() == table
    os.close(controller)


def test_a_class_and_a_least_similarity(built_home: Home) -> None:
    query = "../photos/bee/3.png"
    everything = built_home.do("search", query, "-k", str(COUNT)).hits
    cats = built_home.do("search", query, "-k", str(COUNT), "--label", "cat").hits
    assert [hit["path"] for hit in cats] == [hit["path"] for hit in everything if hit["label"] == "cat"]
    assert [hit["rank"] for hit in cats] == list(range(1, 9))
    assert built_home.do("search", query, "--label", "").paths == ["0.png"]  # those without a class
    least = str(everything[4]["cosine"] - 1e-4)
    assert built_home.do("search", query, "--min-similarity", least).hits == everything[:5]
    assert built_home.do("search", query, "--min-similarity", "1").out == ""


def test_similar_images_of_the_collection(home: Home) -> None:
    """They need no network: it is deleted."""
    shutil.rmtree(home.folder / "data/model")
    done = home.do("similar", "bee/3.png", "-k", "4")
    assert len(done.hits) == 4 and "bee/3.png" not in done.paths
    assert {hit["query"] for hit in done.hits} == {"bee/3.png"}
    assert [hit["rank"] for hit in done.hits] == [1, 2, 3, 4]
    everything = home.do("similar", "bee/3.png", "-k", str(COUNT - 1)).hits
    assert everything[:4] == done.hits and len(everything) == COUNT - 1
    cats = home.do("similar", "bee/3.png", "--label", "cat").paths
    assert cats == [hit["path"] for hit in everything if hit["label"] == "cat"]
    assert len(home.do("similar", "bee/3.png", "--label", "bee").hits) == 7
    assert re.match(r" +1 ", home.do("similar", "bee/3.png", "--table").out)


def test_a_search_loads_neither_tensorflow_nor_what_only_fits(built_home: Home) -> None:
    for arguments in (["search", "../photos/bee/3.png"], ["similar", "bee/3.png"], ["info"], ["--help"]):
        done = built_home.project.run("python", "-X", "importtime", "-m", "lookalike.cli", *arguments)
        loaded = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
        assert "click" in loaded and not loaded & {"tensorflow", "keras", "scipy", "sklearn", "pandas"}
        assert ("openvino" in loaded) == (arguments[0] == "search") and ("faiss" in loaded) == (
            arguments[0] != "--help"
        )


def test_a_reader_that_has_had_enough_is_no_error(built_home: Home) -> None:
    line = f"{shlex.quote(sys.executable)} -m lookalike.cli search ../photos --json | head -1"
    done = built_home.project.run("bash", "-c", line)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


# --- mistakes ----------------------------------------------------------------------------------------------------


QUERY = "../photos/bee/3.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "params.yaml"], "params.yaml: not an image in a known format (JPEG, PNG"),
        (["search", "nothing.png"], "nothing.png: No such file or directory"),
        (["search", "-"], "-: not an image in a known format"),
        (["search", "stages"], "stages: no image in it; looked for .bmp .gif"),
        (["search", QUERY, "--label", "cet"], "no image is labelled 'cet'; did you mean cat? Known: ant, bee, cat"),
        (["search", QUERY, "-k", "0"], "k is 0, but the index holds 25 images; choose 1 to 25"),
        (["search", QUERY, "--index", "nowhere"], "nowhere does not exist; make it: dvc repro index"),
        (["search", QUERY, "--index", "data/raw"], "data/raw.json has no digests of the files in data/raw"),
        (["search", QUERY, "--model", "nowhere"], "nowhere/model.json does not exist; make it: dvc repro model"),
        (["search", QUERY, "--changes", "params.yaml"], "params.yaml"),
        (["similar", "nothing.png"], "nothing.png is not in the collection; paths are as a search shows them"),
        (["similar", "bee/3.png", "-k", "0"], "k is 0; choose 1 or more"),
        (["similar", "bee/3.png", "--label", "owl"], "no image is labelled 'owl'; Known: ant, bee, cat"),
        (["add", "params.yaml", "--as", "x.png"], "params.yaml: not an image in a known format"),
        (["add", "nothing.png"], "nothing.png: No such file or directory"),
        (["add", QUERY, QUERY, "--as", "x.png"], "--as names one path, but there are 2 pictures"),
        (["add", QUERY, "--as", "../x.png"], "path '../x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "a/../../x.png"], "path 'a/../../x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "/abs.png"], "path '/abs.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "./x.png"], "path './x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", "a//x.png"], "path 'a//x.png' must be relative, without '..'"),
        (["add", QUERY, "--as", ""], "path '' must be relative, without '..'"),
        (["add", QUERY, "--as", ".hidden.png"], "path '.hidden.png' has a part that begins with a dot"),
        (["add", QUERY, "--as", "a/.b/x.png"], "path 'a/.b/x.png' has a part that begins with a dot"),
        (["add", QUERY, "--as", "x.txt"], "path 'x.txt' must end as an image does: .bmp .gif"),
        (["add", QUERY, "--as", "x\udcff.png"], r"path 'x\udcff.png' or label '' is not UTF-8"),
        (["add", QUERY, "--label", "x\udcff"], "is not UTF-8; give another"),
        (["add", QUERY, "--label", "a/b"], "label 'a/b' has a slash, so LABEL/NAME would be another path"),
        (["add", QUERY, "--label", "/etc"], "label '/etc' has a slash, so LABEL/NAME would be another path"),
        (["add", QUERY, "--label", "a\\b"], r"label 'a\\b' has a slash, so LABEL/NAME would be another path"),
        (["add", QUERY, "--label", ".."], "path '../3.png' must be relative, without '..'"),
        (["add", QUERY, "--label", "."], "path './3.png' must be relative, without '..'"),
        (["add", QUERY, "--label", "bee"], "bee/3.png is in the collection already; give another name, or replace it"),
        (["add", QUERY, "../photos/cat/3.png"], "two of the pictures would be 3.png; add them one by one, with --as"),
        (["add", QUERY, "--model", "nowhere"], "nowhere/model.json does not exist; make it: dvc repro model"),
        (["remove", "nothing.png"], "nothing.png is not in the collection"),
        (["remove", "bee/3.png", "nothing.png"], "nothing.png is not in the collection"),
        (["fold", "--params", "nothing.yaml"], "nothing.yaml does not exist; run from the project's root"),
        (["info", "--index", "nowhere"], "nowhere does not exist; make it: dvc repro index"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_changes_nothing(untouched: Home, arguments: list[str], message: str) -> None:
    done = untouched.lookalike(*arguments)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("lookalike: error: ") and done.err.count("\n") == 1, done.err
    assert message in done.err
    assert untouched.events() == []
    assert len(untouched.do("search", QUERY, "-k", str(COUNT)).hits) == COUNT


def test_a_mistake_looks_the_same_from_a_shell(built_home: Home) -> None:
    done = built_home.shell("search", "nothing.png", check=False)
    assert (done.status, done.out) == (1, "")
    assert done.err == "lookalike: error: nothing.png: No such file or directory\n"


@POSIX
def test_an_interrupted_addition_of_a_folder_goes_on_when_repeated(home: Home) -> None:
    for seed in range(300):
        home.new(100 + seed, f"many/{seed:03}.png")
    command = [sys.executable, "-m", "lookalike.cli", "add", "../new/many", "--label", "bee"]
    process = subprocess.Popen(command, cwd=home.folder, env=home.project.environment)
    while not home.events():
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = len(home.events())
    assert 0 < before < 300
    done = home.do("add", "../new/many", "--label", "bee")
    assert f"{before} of 300 had been added before, the same pictures; they stay as they are\n" in done.err
    assert [event.path for event in home.events()] == [f"bee/{seed:03}.png" for seed in range(300)]
    for arguments in (["add", "../new/many/007.png"], ["add", home.new(7), "--as", "bee/007.png", "--label", "bee"]):
        assert home.lookalike(*arguments).status == (0 if len(arguments) == 2 else 1)  # another path; another picture


@pytest.mark.parametrize(
    "arguments",
    [["search"], ["add"], ["remove"], ["similar"], ["serach"], ["search", QUERY, "--min-similarity", "2"],
     ["search", QUERY, "-k", "x"], ["search", QUERY, "--nothing"], ["fold", "x"]],
)  # fmt: skip
def test_a_mistake_in_the_command_line_is_another_status(built_home: Home, arguments: list[str]) -> None:
    done = built_home.lookalike(*arguments)
    assert (done.status, done.out) == (2, "") and done.err.startswith("Usage: lookalike") and "Error: " in done.err


def test_a_broken_or_foreign_index_or_network_is_not_opened(home: Home) -> None:
    index, model = home.folder / "data/index/index.faiss", home.folder / "data/model/model.json"
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    for arguments in (["search", QUERY], ["similar", "bee/3.png"], ["add", QUERY], ["remove", "bee/3.png"], ["fold"]):
        done = home.lookalike(*arguments)
        assert done.status == 1 and done.err.count("\n") == 1
        assert "index.faiss is not the file that data/index.json describes" in done.err
    index.write_bytes(whole)
    content = json.loads(model.read_text())
    model.write_text(json.dumps(content | {"fingerprint": "f" * 64}))
    done = home.lookalike("search", QUERY)
    assert re.fullmatch(r"lookalike: error: the index was made by MobileNet \w{12}, but data/model holds MobileNet "
                        r"ffffffffffff, whose embeddings cannot be compared .*\n", done.err)  # fmt: skip
    assert len(home.do("similar", "bee/3.png").hits) == 10


# --- the help ----------------------------------------------------------------------------------------------------


def examples(command: str, built_home: Home) -> list[str]:
    text = built_home.do(*filter(None, [command]), "--help").out
    return [line.strip() for line in text.splitlines() if re.match(r" +(\S+ .*\| )?lookalike \w", line)]


@pytest.fixture
def shell(home: Home) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """A shell in which the help's examples mean something: pictures, words, `lookalike`, a `curl` without internet."""
    bin_folder = home.folder.parent / "bin"
    bin_folder.mkdir()
    for name, line in (("lookalike", f'exec {sys.executable} -m lookalike.cli "$@"'), ("curl", "cat photo.jpg")):
        (bin_folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_folder / name).chmod(0o755)
    for seed, name in enumerate(
        ("photo.jpg", "other.png", "new.jpg", "better.jpg", "photos/one.jpg", "photos/two.jpg")
    ):
        path = home.folder / name
        path.parent.mkdir(exist_ok=True)
        picture(400 + seed).save(path)
    (home.folder / "tags.csv").write_text("path,text\nbee/0.png,red shoe\ncat/1.png,old shoe\n")
    home.project.set(index__tags__file="tags.csv")
    assert home.project.repro("index") == ["index"]
    home.do("add", QUERY, "--as", "3/digit_0003.png", "--label", "3")
    home.do("add", QUERY, "--as", "cat/old.jpg", "--label", "cat")
    environment = home.project.environment
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
    yield lambda line: subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", line],
        cwd=home.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_example_in_the_help_runs(
    built_home: Home, home: Home, shell: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    """Searches first, each once; `similar` of a picture, say, is shown in two places."""
    elsewhere = {"bundle", "serve", "ui"}  # have tests of their own
    lines = [
        line
        for command in ["", "search", "similar", *cli.app.commands]
        if command not in elsewhere
        for line in examples(command, built_home)
    ]
    named = {line: line.partition("lookalike ")[2].split()[0] for line in lines}
    shown = [line for line in named if named[line] not in elsewhere]
    assert {named[line] for line in shown} == {"search", "similar", "add", "remove"}
    assert any("| lookalike search -" in line for line in shown) and any("> hits.jsonl" in line for line in shown)
    for line in shown:
        done = shell(line)
        assert done.returncode == 0 and "rror" not in done.stderr, line
    assert [hit["label"] for hit in map(json.loads, (home.folder / "hits.jsonl").open())] == ["cat"] * 20  # ten each
    assert "cat/old.jpg is not in the collection" in home.lookalike("similar", "cat/old.jpg").err


def test_help_says_what_every_command_and_option_is(built_home: Home) -> None:
    for name, command in cli.app.commands.items():
        text = built_home.do(name, "--help").out
        assert "\\b" not in text and "Exit status: 0 done, 1 an error" in text
        assert command.help
        for option in command.params:
            assert option.opts[0] in text or option.name.upper() in text
            assert isinstance(option, click.Argument) or option.help, f"{name} {option.opts}"
