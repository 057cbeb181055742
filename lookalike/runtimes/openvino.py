"""Runtime for OpenVINO on the CPU. It needs no TensorFlow and is ready in a fraction of a second.

Compiled networks are not cached: compiling takes 0.2 s, of which a cached one, as large as the weights, saves half.
"""

from pathlib import Path

import numpy as np

from lookalike.artifacts import descriptions
from lookalike.base import machine
from lookalike.base.errors import LookalikeError
from lookalike.base.params import UNUSED
from lookalike.networks import sizes
from lookalike.runtimes.base import Embedder, Precision, installed

NETWORK_FILES: tuple[str, ...] = (descriptions.OPENVINO_FILE, descriptions.OPENVINO_WEIGHTS_FILE)
CODE: tuple[str, ...] = (
    "runtimes/openvino.py",
    "networks/openvino_setup.py",
    "extraction/extractor.py",
    "extraction/company.py",
)
# int8 is a quantised network; its layers that were not quantised run in float32.
HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "f32"}
CAPABILITIES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int8": "INT8"}


def load(
    folder: Path, image_size: int, batch_size: int, precision: Precision, calibration: Path = Path(UNUSED)
) -> Embedder:
    """Load the network as in `Runtime.load`; bfloat16 and float16 need a processor with instructions for them."""
    from lookalike.networks.openvino_setup import ov

    sizes.check_size(descriptions.describe(folder), image_size)
    core = ov.Core()
    if precision != "float32" and precision not in usable():
        raise LookalikeError(
            f"extract.precision is {precision}, for which this processor ({machine.cpu_name()}) has no instructions; "
            f"set it to one of {', '.join(usable())}"
        )
    if precision == "int8":
        from lookalike.runtimes.quantization import quantized

        path = quantized(folder, image_size, calibration)
    else:
        path = folder / descriptions.OPENVINO_FILE
    try:
        model = core.read_model(path)
        model.reshape([batch_size, image_size, image_size, 3])
        # One stream: all n cores work on the same batch, so that a row is ready after 1/n of the time.
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision], "NUM_STREAMS": 1})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise LookalikeError(
            f"{path} cannot be run at preprocess.image_size {image_size}: {reason}; choose a larger size, or rebuild "
            "the network: dvc repro --force model"
        ) from None
    request = compiled.create_infer_request()

    def embed(pixels: np.ndarray) -> np.ndarray:
        request.infer([pixels], share_inputs=True)
        return np.array(request.get_output_tensor().data)

    return embed


def usable() -> list[str]:
    """Return the precisions that the processor has instructions for."""
    from lookalike.networks.openvino_setup import ov

    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name, capability in CAPABILITIES.items() if capability in able and _compiles(name)]


def _compiles(precision: str) -> bool:
    """Return whether a convolution compiles: OpenVINO also lists instructions disabled through ONEDNN_MAX_CPU_ISA."""
    from openvino import opset13 as ops

    from lookalike.networks.openvino_setup import ov

    pixels = ops.parameter([1, 3, 8, 8], np.float32)
    mean = ops.convolution(pixels, np.full((4, 3, 3, 3), 1 / 27, np.float32), [1, 1], [0, 0], [0, 0], [1, 1])
    try:
        ov.Core().compile_model(ov.Model([mean], [pixels]), "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})
    except RuntimeError:
        return False
    return True


def version(precision: Precision, backbone: str) -> str:
    """Return the version of OpenVINO and, for int8, of NNCF."""
    packages = ["openvino", "nncf"] if precision == "int8" else ["openvino"]
    return ", ".join(map(installed, packages))


def sees_gpu() -> bool:
    """Return False: only the CPU is used."""
    return False


def device() -> str:
    """Describe the CPU and the settings that choose its kernels.

    The number of threads is left out because it changes no bit (tests/extraction/test_extractor.py).
    """
    return "; ".join([machine.cpu_name(), machine.cpu_features(), *machine.environment("ONEDNN_", "DNNL_", "OV_")])
