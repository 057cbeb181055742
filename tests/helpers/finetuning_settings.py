"""The committed settings of fine-tuning, and changed ones."""

from msgspec import convert, to_builtins

from lookalike.base import params
from lookalike.evaluation import protocol
from lookalike.finetuning.settings import Settings
from tests.helpers.project import ROOT

SETTINGS = params.load(ROOT / "params.yaml", "finetune", Settings)
PROTOCOL = params.load(ROOT / "params.yaml", "protocol", protocol.Settings)


def changed(base: Settings = SETTINGS, **values) -> Settings:
    return convert(to_builtins(base) | values, Settings)
