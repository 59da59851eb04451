"""Rows over ranks and vocabularies over ranks, by torch.distributed.

`gram_sums` sums over all pairs of rows that several processes hold. `logsumexp`, `logit_pairs` and `compare_logits`
take a slice of the vocabulary from each process.
"""

from .gram_ring import gram_sums as gram_sums
from .vocabulary import compare_logits as compare_logits
from .vocabulary import logit_pairs as logit_pairs
from .vocabulary import logsumexp as logsumexp
