"""OpenVINO, imported in one place, and with the usage reports of its converter and of NNCF shut off.

Both would send them over the network unless the user had declined; only `download` and `model` may use a network, and
those for what they were asked to fetch. Both take a missing reporter for a no.
"""

import sys
from pathlib import Path

from lookalike.errors import LookalikeError

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes importing it fail
try:
    import openvino as ov
except ImportError as error:
    raise LookalikeError(f"OpenVINO cannot be imported ({error}): pip install -r requirements.txt") from None

__all__ = ["ov", "save"]


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
