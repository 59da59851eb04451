"""The kernels as functions: check the arguments, choose a backend, call it, return a state."""

from .gram_sums import gram_sums as gram_sums
from .layer_moments import layer_moments as layer_moments
from .layer_moments import unread_layer_moments as unread_layer_moments
from .logit_pairs import logit_divergences as logit_divergences
from .logit_pairs import logit_pairs as logit_pairs
from .logit_pairs import unread_logit_pairs as unread_logit_pairs
from .logsumexp import logsumexp as logsumexp
from .moments import moments as moments
from .moments import unread_moments as unread_moments
