"""How similar two models are: exact CKA and HSIC by streaming, without an n x n Gram matrix.

>>> import numpy as np
>>> import gramless as gl
>>> rng = np.random.default_rng(0)
>>> x = rng.standard_normal((1000, 32))
>>> rotation = np.linalg.qr(rng.standard_normal((32, 32)))[0]
>>> round(gl.cka(x, x @ rotation), 6)
1.0
"""

from . import bounds
from ._dispatch import get_num_threads, set_num_threads
from ._explain import explain
from ._gram import GramState
from ._logits import LogitPairState, LogitState
from ._states import MomentState
from ._version import __version__
from .accumulators import Moments
from .bandwidths import Bandwidth, bandwidth
from .distance_stream import LogitDistance, LogitDistanceResult
from .estimates import Calibrated, Estimate
from .gram_pass import GramSums
from .identifiability.correlations import MeanCorrelation, SVDDissimilarity, d_svd, mean_cca, msvd
from .identifiability.label_sets import LinearDissimilarity, d_rep
from .identifiability.labels import (
    CosineAmbiguity,
    center_unembedding,
    cosine_ambiguity,
    label_covariance,
    label_similarity,
)
from .identifiability.likelihoods import LogLikelihoodDistance, d_llv
from .independence import HSICTest, hsic_test
from .layers import LayerGrid, SimilarityMatrix, cka_matrix
from .logit_comparison import LogitComparison, compare_logits
from .logit_distance import logit_distance
from .logit_stream import LogitPairs
from .ops import gram_sums, logit_divergences, logit_pairs, logsumexp, moments
from .random_features import RandomFeatures
from .similarity import cka, cka_distance, hsic
from .unembedding import UnembeddingPair

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
