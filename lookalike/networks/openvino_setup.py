"""OpenVINO, with the usage reports of its converter and of NNCF turned off. Import `ov` from here, never directly.

Both would send reports over the network unless the user had opted out, but only `download` and `model` may use a
network, and only to fetch what the settings name. Both send nothing if their telemetry package cannot be imported.
"""

import sys
from pathlib import Path
from typing import Any

from lookalike.base.errors import LookalikeError

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes importing it fail
# OpenVINO imports its converter if it can, which a search never needs: 190 ms -> 90 ms without it.
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
    """Write a network as .xml and .bin; the same network gives the same bytes.

    The converter numbers nodes by a counter of the whole process, so they are renamed here, counting from zero.
    """
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO says only "iostream error"
        raise OSError(f"{path} cannot be written ({error}); make room, and run again") from None
