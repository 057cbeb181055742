"""How a network is run. A runtime is a module with `load`, which returns a function from pixels to embeddings."""

from collections.abc import Callable

import numpy as np

# uint8 (B, S, S, 3) -> float32 (B, D), for the one B that it was loaded for
Embedder = Callable[[np.ndarray], np.ndarray]
