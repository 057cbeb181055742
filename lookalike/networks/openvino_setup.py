"""OpenVINO, imported in one place, and with the usage reports of its converter and of NNCF shut off.

Both would send them over the network unless the user had declined; only `download` and `model` may use a network, and
those for what they were asked to fetch. Both take a missing reporter for a no.
"""

import sys
from pathlib import Path
from typing import Any

from lookalike.base.errors import LookalikeError

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes importing it fail
# OpenVINO does without its converter where that cannot be imported, which takes more than half of the time (100 of 190
# ms); a search never converts.
CONVERTER = "openvino.tools"
_left_out = sys.modules.setdefault(CONVERTER, None) is None  # type: ignore[arg-type]
try:
    import openvino as ov
except ImportError as error:
    raise LookalikeError(f"OpenVINO cannot be imported ({error}): pip install -r requirements.txt") from None
finally:
    if _left_out:
        del sys.modules[CONVERTER]

__all__ = ["convert", "ov", "save"]


def convert(model: Any) -> ov.Model:
    """Convert a Keras network."""
    from openvino.tools.ovc import convert_model

    return convert_model(model)


def save(model: ov.Model, path: Path) -> None:
    """Write a network, .xml and .bin; the same network gives the same bytes.

    The converter numbers its nodes from a count of all that the process has made; here they count from zero.
    """
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # no more than "iostream error"
        raise OSError(f"{path} cannot be written ({error}); make room, and run again") from None
