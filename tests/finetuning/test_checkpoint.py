"""A training that ended early goes on where it was."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import to_builtins

from lookalike.artifacts.descriptions import Network
from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json
from lookalike.finetuning import checkpoint, finetune, training_images
from tests.helpers.finetuning_settings import changed
from tests.helpers.import_graph import explained_only, project_files
from tests.helpers.project import ROOT

pytestmark = pytest.mark.slow  # TensorFlow trains networks


def test_a_finished_training_is_another_when_code_changes_that_picks_its_best_epoch() -> None:
    """All that the validation mAP comes from, but what reads, writes, refuses, or makes other figures."""
    idle = {"artifacts/arrays.py", "base/errors.py", "base/machine.py", "base/params.py"}
    others = {"evaluation/protocol.py", "evaluation/bootstrap.py"}  # rows are in the digest themselves; no intervals
    files = [file for file in project_files(ROOT / "lookalike/evaluation/measure.py") if not explained_only(file)]
    used = {file.removeprefix("lookalike/") for file in files}
    assert used - idle - others == set(finetune.DECIDES) - {"networks/backbones.py", "networks/keras_setup.py"}
    assert all((ROOT / "lookalike" / name).is_file() for name in finetune.DECIDES)


def test_a_damaged_checkpoint_is_none(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, checkpoint.Progress(epoch=3), {"model": [np.arange(3.0)]})
    progress, arrays = checkpoint.load(tmp_path)
    assert progress.epoch == 3 and arrays["model"][0].tolist() == [0, 1, 2]
    file = tmp_path / checkpoint.STATE_FILE
    file.write_bytes(file.read_bytes()[:-40])
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.load(tmp_path / "none") is None


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Steps as plain Python: nothing to compile for a network of six weights."""
    from lookalike.networks.keras_setup import tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("eagerly")
def test_a_training_that_ends_within_an_epoch_goes_on_behind_its_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """Interrupted in the second of two epochs; no batch is done twice, and the weights are the undisturbed ones'."""
    from lookalike.finetuning import trainer as training
    from lookalike.networks.keras_setup import keras

    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)  # after each batch
    labels, none = np.repeat(["a", "b"], 8), np.zeros(0, np.int64)
    frozen = np.random.default_rng(0).normal(size=(1, 16, 3)).astype(np.float32)
    chosen = training_images.Material(np.arange(16), none, none, (), ())
    settings = changed(classes=2, images=2, views=1, epochs=2, patience=9, learning_rate=0.1)

    def train(folder: Path, most: int) -> tuple[int, bytes]:
        """Train for at most so many batches; how many were done, and the weights."""
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
        trainer, done = training.Trainer(model, frozen, labels, chosen, settings, folder), []
        step = trainer._step

        def limited(*batch: Any) -> Any:
            if len(done) == most:
                raise KeyboardInterrupt
            done.append(batch)
            return step(*batch)

        trainer._step = limited
        with suppress(KeyboardInterrupt):
            trainer.run(lambda row: None)
        return len(done), model.get_weights()[0].tobytes()

    count, undisturbed = train(tmp_path / "undisturbed", 99)
    assert count == 8
    assert train(tmp_path / "killed", 6)[1] != undisturbed
    assert told == []
    assert train(tmp_path / "killed", 99) == (2, undisturbed)
    assert told == ["resumed in epoch 2 of 2"]


def test_a_head_behind_a_pooling_that_has_none_is_refused(tmp_path: Path) -> None:
    from lookalike.finetuning import cut
    from lookalike.networks.keras_setup import keras

    pixels = keras.Input((None, None, 3))
    model = keras.Model(pixels, keras.layers.Conv2D(4, 1, name="only")(pixels))
    (tmp_path / "architecture.json").write_text(model.to_json())
    model.save_weights(tmp_path / "model.weights.h5")
    write_json(tmp_path / "model.json", to_builtins(Network("VGG16", "random", "only", "gem", 4, 16, "f")))
    message = r"finetune\.head is true, but a head needs model\.pooling avg or max, not gem; set it to false"
    with pytest.raises(LookalikeError, match=message):
        cut.cut(tmp_path, "", True, 32)
