"""A bundle answers as the project it was made from, and only as it was made; figures of hits; thumbnails."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from lookalike.base import files
from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json
from lookalike.collection import bundle, thumbnails, verify
from lookalike.collection.collection import Gallery
from lookalike.collection.picture_search import Pictures
from lookalike.collection.thumbnails import Missing, Thumbnails
from lookalike.images import previews
from tests.helpers import small_collection
from tests.helpers.small_collection import Built, run


def bundled(*more: str) -> Result:
    return run("bundle", "served", *more)


@pytest.mark.slow
def test_a_bundle_answers_without_the_project(built: Built, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    small_collection.coloured("green", 999).save(photo)
    before = [run("search", str(photo), "-k", "5").stdout, run("similar", "red/03.jpg", "-k", "5").stdout]
    done = bundled()
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == 24
    assert "lookalike ui --index served/index --model served/model" in done.stderr
    shutil.rmtree(built.folder)
    where = ["--index", "served/index", "--model", "served/model"]
    after = [
        run("search", str(photo), "-k", "5", *where).stdout,
        run("similar", "red/03.jpg", "-k", "5", *where).stdout,
    ]
    assert after == before
    assert [json.loads(line)["label"] for line in after[0].splitlines()] == ["green"] * 5
    drawn = run("similar", "red/03.jpg", "--grid", "hits.png", *where)  # its pictures are in it
    assert drawn.exit_code == 0, drawn.output
    assert Image.open("hits.png").size[0] > 1000
    assert sorted(path.name for path in Path("served/model").iterdir()) == ["model.json", "network.bin", "network.xml"]


@pytest.mark.parametrize("name", ["index/index.faiss", "model/network.bin", "thumbnails/thumbnails.sqlite"])
def test_a_bundle_that_was_changed_is_not_opened(built: Built, tmp_path: Path, name: str) -> None:
    assert bundled().exit_code == 0
    with (tmp_path / "served" / name).open("r+b") as file:
        file.seek(8)
        file.write(b"\xff\xfe\xfd")
    done = run("search", str(built.picture("red/00.jpg")), "--grid", "hits.png", "--index", "served/index", "--model",
               "served/model")  # fmt: skip
    assert done.exit_code == 1
    assert f"served/{name} is not the file that" in str(done.exception)


def test_changes_are_refused_or_left_out(built: Built, tmp_path: Path) -> None:
    photo = tmp_path / "new.png"
    small_collection.coloured("blue", 7).save(photo)
    assert run("add", str(photo), "--label", "blue").exit_code == 0
    assert run("remove", "red/00.jpg").exit_code == 0
    refused = bundled()
    assert refused.exit_code == 1
    assert "changes of 2 images" in str(refused.exception)
    assert not Path("served").exists()
    assert bundled("--without-changes").exit_code == 0
    found = run("similar", "red/00.jpg", "-k", "23", "--index", "served/index").stdout
    assert len(found.splitlines()) == 23
    assert "new.png" not in found


def test_what_is_no_bundle_is_left_alone(built: Built, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/thesis.txt").write_text("years of work")
    done = bundled()
    assert done.exit_code == 1
    assert "is no bundle, so it was left as it is" in str(done.exception)
    assert (tmp_path / "served/thesis.txt").read_text() == "years of work"
    (tmp_path / "served/thesis.txt").unlink()
    assert bundled().exit_code == 0  # an empty folder is taken
    first = (tmp_path / "served/thumbnails.json").read_bytes()
    assert bundled().exit_code == 0  # and a bundle replaced, by the same bytes
    assert (tmp_path / "served/thumbnails.json").read_bytes() == first


def test_a_missing_picture_stops_a_bundle_and_nothing_is_left(built: Built, tmp_path: Path) -> None:
    built.picture("red/05.jpg").unlink()
    done = bundled()
    assert done.exit_code == 1
    assert "red/05.jpg cannot be read" in str(done.exception)
    assert not list(tmp_path.glob("served*"))


def test_a_network_without_its_weights_stops_a_bundle(built: Built, tmp_path: Path) -> None:
    """A fine-tuned one's too, of which no stage has the folder's name."""
    (built.folder / "model").rename(built.folder / "finetuned")
    (built.folder / "finetuned/network.bin").unlink()
    done = bundled()
    assert done.exit_code == 1
    assert str(done.exception).endswith("data/finetuned/network.bin does not exist; make it: dvc repro")
    assert not list(tmp_path.glob("served*"))


def test_a_bundle_is_made_of_a_bundle_as_it_was_written(built: Built, tmp_path: Path) -> None:
    served = ["--index", "served/index", "--model", "served/model"]
    assert bundled().exit_code == 0
    shutil.rmtree(built.folder)
    done = run("bundle", "again", *served)
    assert done.exit_code == 0, done.output
    for name in ("index.json", "model.json", "index/index.faiss", "model/network.bin"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "served" / name).read_bytes()
    shutil.rmtree(tmp_path / "again")
    (tmp_path / "served/model/network.xml").write_text("another network")
    done = run("bundle", "again", *served)
    assert done.exit_code == 1
    assert "served/model/network.xml is not the file that served/model.json describes" in str(done.exception)
    assert not list(tmp_path.glob("again*"))


@pytest.mark.parametrize(
    ("through", "message"),
    [(False, r"data/index was written while it was copied; try again"),
     (True, r"data/index was rebuilt since it was opened; open it again")],
    ids=["and is not through", "and is through"],
)  # fmt: skip
def test_an_index_that_is_rebuilt_meanwhile_is_not_bundled(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: bool, message: str
) -> None:
    """After it was opened, before it is copied. Its trace is the last that a stage writes."""
    data = built.folder
    opened = Pictures(data / "index", data / "model", data / "changes")
    other = small_collection.build(tmp_path / "other", each=5).folder

    def meanwhile(*_: object) -> None:
        shutil.rmtree(data / "index")
        for name in ("index", "index.json") if through else ("index",):
            (other / name).replace(data / name)

    monkeypatch.setattr(bundle, "check_same_network", meanwhile)
    source = bundle.Source(data / "index", data / "model", data / "raw", tmp_path / "metrics", tmp_path / "plots")
    with pytest.raises(LookalikeError, match=message):
        bundle.write(tmp_path / "served", opened, source, without_changes=False, progress=lambda _: lambda: None)
    assert not list(tmp_path.glob("served*"))


def test_a_figure_shows_hits_and_misses(built: Built) -> None:
    done = run("similar", "red/03.jpg", "-k", "12", "--grid", "hits.png")
    assert done.exit_code == 0, done.output
    figure = np.asarray(Image.open("hits.png").convert("RGB")).astype(int).reshape(-1, 3)
    same, other = (np.abs(figure - colour).max(axis=1) < 8 for colour in ((27, 138, 75), (192, 57, 43)))
    assert same.sum() > 500  # seven other red ones are framed green
    assert other.sum() > 500
    unmarked = run("search", str(built.picture("red/03.jpg")), "--grid", "photo.png")
    assert unmarked.exit_code == 0, unmarked.output
    figure = np.asarray(Image.open("photo.png").convert("RGB")).astype(int).reshape(-1, 3)
    assert not (np.abs(figure - (27, 138, 75)).max(axis=1) < 8).any()  # a picture from outside has no class


def test_thumbnails_hold_pixels_and_nothing_else(built: Built, tmp_path: Path) -> None:
    secret = Image.new("RGB", (2000, 1000), "teal")
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    exif[0x0112] = 6  # lies on its side
    secret.save(tmp_path / "new.jpg", exif=exif, comment=b"where I live", icc_profile=b"where I live" * 20)
    pictures = Pictures(built.folder / "index", built.folder / "model", built.folder / "changes")
    pictures.add("blue/new.jpg", "blue", (tmp_path / "new.jpg").read_bytes())
    shown = Thumbnails(pictures.gallery, built.folder / "raw")
    content = shown.of("blue/new.jpg")  # from the journal
    assert b"where I live" not in content
    assert Image.open(io.BytesIO(content)).size == (128, 256)
    assert max(Image.open(io.BytesIO(previews.encode(Image.new("RGB", (8, 4))))).size) == 128
    assert shown.pixels("red/03.jpg", 50).shape == (50, 50, 3)
    with pytest.raises(LookalikeError, match="is not in the collection"):
        shown.of("../../etc/passwd")


def test_a_picture_that_is_broken_is_named_and_no_other_is_lost(built: Built) -> None:
    built.picture("red/03.jpg").write_bytes(b"broken")
    shown = Thumbnails(Gallery(built.folder / "index", built.folder / "changes"), built.folder / "raw")
    for ask in (shown.of, shown.own, lambda path: shown.pixels(path, 50)):
        with pytest.raises(Missing, match=r"^red/03\.jpg: its picture not an image .*: dvc repro --force download$"):
            ask("red/03.jpg")
        ask("red/04.jpg")


def test_thumbnails_that_are_not_those_of_the_index_are_named(built: Built, tmp_path: Path) -> None:
    """As their trace says, but of another index, or no table of thumbnails."""
    gallery = Gallery(built.folder / "index", built.folder / "changes")
    folder = tmp_path / "thumbnails"
    folder.mkdir()
    file = folder / thumbnails.FILE
    thumbnails.write(["red/04.jpg"], lambda path: built.picture(path).read_bytes(), folder, lambda: None)
    write_json(tmp_path / "thumbnails.json", {"files": [files.digests(folder)]})
    shown = Thumbnails(gallery, folder)
    assert Image.open(io.BytesIO(shown.of("red/04.jpg"))).format == "JPEG"
    with pytest.raises(Missing, match=rf"red/03\.jpg: {file} has no picture of it; make the bundle anew: lookalike"):
        shown.of("red/03.jpg")
    file.write_bytes(b"no database")
    write_json(tmp_path / "thumbnails.json", {"files": [files.digests(folder)]})
    with pytest.raises(Missing, match=rf"{file} cannot be read \(file is not a database\); make the bundle anew"):
        Thumbnails(gallery, folder).of("red/04.jpg")


def test_a_bundle_that_was_changed_is_not_replaced(built: Built, tmp_path: Path) -> None:
    served = tmp_path / "served"
    command = [f"--{name}={built.folder / name}" for name in ("index", "model")] + ["--without-changes"]
    command += [f"--images={built.folder / 'raw'}"]
    assert run("bundle", str(served), *command).exit_code == 0
    inside = [f"--index={served / 'index'}", f"--model={served / 'model'}"]
    picture = str(built.picture("red/00.jpg"))
    assert run("add", picture, "--as", "new/one.jpg", "--label", "new", *inside).exit_code == 0
    done = run("bundle", str(served), *command)
    assert done.exit_code == 1 and (served / "changes").is_dir()


def test_a_server_shows_the_pictures_of_the_bundle_that_is_there_now(built: Built, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="pip install -r requirements/serve.txt")
    from lookalike.api.pictures import stored

    assert bundled().exit_code == 0
    gallery, folder = Gallery(Path("served/index"), tmp_path / "none"), Path("served/thumbnails")
    before = stored(gallery.state, gallery.journal, 0, folder)
    assert Image.open(io.BytesIO(before.read())).format == "JPEG"
    shutil.rmtree(folder)
    folder.mkdir()
    thumbnails.write(gallery.state.names.paths.tolist(), lambda path: b"another", folder, lambda: None)
    write_json(verify.trace_of(folder), {"files": [files.digests(folder)]})
    after = stored(gallery.state, gallery.journal, 0, folder)
    assert after.read() == b"another" and after.tag(None) != before.tag(None)


def test_no_path_leads_out_of_the_pictures(built: Built, tmp_path: Path) -> None:
    """Not even one that an index names."""
    (tmp_path / "secret.jpg").write_bytes(built.picture("red/00.jpg").read_bytes())
    shown = Thumbnails(Gallery(built.folder / "index", built.folder / "changes"), built.folder / "raw")
    for path in ("../../secret.jpg", str(tmp_path / "secret.jpg"), "red/../../../secret.jpg"):
        with pytest.raises(Missing, match="is no path in"):
            shown.own(path)
