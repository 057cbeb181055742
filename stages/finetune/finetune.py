"""Train the last layers of the network on the gallery's classes, so that images of one class move closer together.

Reads   data/processed                      pictures, labels, files' hashes
        data/model                          the network to start from
        the user's cache folder             outputs of frozen layers, and the checkpoint of a killed run
Writes  data/finetuned                      the trained network, the same files as data/model
        data/finetuned.json                 counts of images and classes, validation mAP, for Git
        data/finetuned_curves               loss and validation mAP of each epoch, by DVCLive

Only the gallery of the `protocol` split is trained on: no queries, and no images with the same bytes as a query.

    python stages/finetune/finetune.py data/processed data/model data/finetuned
"""

import sys
from pathlib import Path

from msgspec import to_builtins

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's library, whatever is installed

from lookalike.artifacts.arrays import load_images
from lookalike.artifacts.descriptions import WEIGHTS_FILE
from lookalike.base import params, script
from lookalike.base.errors import LookalikeError
from lookalike.base.files import file_digest, new_folder, write_json
from lookalike.evaluation import protocol
from lookalike.finetuning import training_images
from lookalike.finetuning.settings import Settings


def main() -> None:
    """Read the arguments, choose the training images, train and save the network."""
    parser = script.parser(__doc__)
    parser.add_argument("processed", type=Path, help="output folder of preprocess")
    parser.add_argument("model", type=Path, help="output folder of model")
    parser.add_argument("finetuned", type=Path, help="folder to write; replaced as a whole")
    args = parser.parse_args()
    settings = params.load(args.params, "finetune", Settings)
    protocol_settings = params.load(args.params, "protocol", protocol.Settings)
    images = load_images(args.processed)
    chosen = training_images.choose(images.paths, images.labels, images.sha256, protocol_settings, settings)
    for note in chosen.notes:
        script.notice("finetune", note)
    try:
        from dvclive.live import Live
    except ImportError:
        raise LookalikeError(
            "dvclive, which records the training's curves, is not installed: pip install -r requirements/finetune.txt"
        ) from None

    from lookalike.finetuning import finetune  # imports TensorFlow, which takes seconds

    curves = args.finetuned.with_name(args.finetuned.name + "_curves")
    with Live(str(curves), save_dvc_exp=False, dvcyaml=False) as live:

        def log(row: dict[str, float]) -> None:
            for name, value in row.items():
                live.log_metric(name, value, plot=True)
            live.next_step()

        tuned = finetune.tune(images, args.model, chosen, settings, log)
    with new_folder(args.finetuned) as folder:
        description = tuned.save(folder)
    trace = {
        **to_builtins(description),
        "weights_sha256": file_digest(args.finetuned / WEIGHTS_FILE),
        **training_images.counts(chosen, images.labels),
        **tuned.figures(),
    }
    write_json(args.finetuned.with_suffix(".json"), trace)
    script.notice("finetune", tuned.summary())


if __name__ == "__main__":
    script.run("finetune", main)
