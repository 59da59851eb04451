"""How similar two models are: exact CKA and HSIC by streaming, without an n x n Gram matrix.

>>> import numpy as np
>>> import gramless as gl
>>> rng = np.random.default_rng(0)
>>> x = rng.standard_normal((1000, 32))
>>> rotation = np.linalg.qr(rng.standard_normal((32, 32)))[0]
>>> round(gl.cka(x, x @ rotation), 6)
1.0
"""

from ._dispatch import get_num_threads, set_num_threads
from ._explain import explain
from ._gram import GramState
from ._states import MomentState
from ._version import __version__
from .accumulators import Moments
from .bandwidths import Bandwidth, bandwidth
from .estimates import Calibrated, Estimate
from .gram_pass import GramSums
from .independence import HSICTest, hsic_test
from .layers import LayerGrid, SimilarityMatrix, cka_matrix
from .ops import gram_sums, moments
from .random_features import RandomFeatures
from .similarity import cka, cka_distance, hsic

__all__ = [
    # measures
    "cka",
    "hsic",
    "cka_distance",
    "cka_matrix",
    "hsic_test",
    # what they return
    "SimilarityMatrix",
    "Estimate",
    "Calibrated",
    "HSICTest",
    # states and streams
    "moments",
    "MomentState",
    "Moments",
    "gram_sums",
    "GramState",
    "GramSums",
    "bandwidth",
    "Bandwidth",
    "RandomFeatures",
    "LayerGrid",
    # control
    "explain",
    "set_num_threads",
    "get_num_threads",
    "__version__",
]
