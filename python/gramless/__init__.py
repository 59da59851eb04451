"""How similar two models are: exact CKA and HSIC by streaming, without an n x n Gram matrix.

>>> import numpy as np
>>> import gramless as gl
>>> rng = np.random.default_rng(0)
>>> x = rng.standard_normal((1000, 32))
>>> rotation = np.linalg.qr(rng.standard_normal((32, 32)))[0]
>>> round(gl.cka(x, x @ rotation), 6)
1.0
"""

from ._base.annotated_floats import Calibrated, Estimate
from ._version import __version__
from .accumulators.moments import Moments
from .explain.similarity import explain
from .identifiability import bounds
from .identifiability.d_llv import LogLikelihoodDistance, d_llv
from .identifiability.d_rep import LinearDissimilarity, d_rep
from .identifiability.labels import (
    CosineAmbiguity,
    center_unembedding,
    cosine_ambiguity,
    label_covariance,
    label_similarity,
)
from .identifiability.mean_cca import MeanCorrelation, mean_cca
from .identifiability.msvd import SVDDissimilarity, d_svd, msvd
from .layers.cka_matrix import cka_matrix
from .layers.grid import LayerGrid
from .layers.similarity_matrix import SimilarityMatrix
from .ops.gram_sums import gram_sums
from .ops.logit_pairs import logit_divergences, logit_pairs
from .ops.logsumexp import logsumexp
from .ops.moments import moments
from .ops.threads import get_num_threads, set_num_threads
from .predictions.compare import LogitComparison, compare_logits
from .predictions.distance_stream import LogitDistance, LogitDistanceResult
from .predictions.logit_distance import logit_distance
from .predictions.stream import LogitPairs
from .predictions.unembedding_pair import UnembeddingPair
from .similarity.bandwidth_rules import Bandwidth, bandwidth
from .similarity.gram_sums_pass import GramSums
from .similarity.hsic_test import HSICTest, hsic_test
from .similarity.one_shot import cka, cka_distance, hsic
from .similarity.random_features import RandomFeatures
from .states.gram import GramState
from .states.logits import LogitPairState, LogitState
from .states.moments import MomentState

__all__ = [
    # measures
    "cka",
    "hsic",
    "cka_distance",
    "cka_matrix",
    "hsic_test",
    "mean_cca",
    # two models: embeddings with their unembeddings
    "d_llv",
    "d_rep",
    "d_svd",
    "msvd",
    "label_covariance",
    "label_similarity",
    "center_unembedding",
    "cosine_ambiguity",
    "bounds",
    "compare_logits",
    "logit_distance",
    # what they return
    "SimilarityMatrix",
    "Estimate",
    "Calibrated",
    "HSICTest",
    "MeanCorrelation",
    "LogitComparison",
    "LogLikelihoodDistance",
    "LinearDissimilarity",
    "SVDDissimilarity",
    "CosineAmbiguity",
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
    "logsumexp",
    "LogitState",
    "logit_pairs",
    "logit_divergences",
    "LogitPairState",
    "LogitPairs",
    "LogitDistance",
    "LogitDistanceResult",
    "UnembeddingPair",
    # control
    "explain",
    "set_num_threads",
    "get_num_threads",
    "__version__",
]
