"""Are two models the same up to what predictions cannot tell apart? Measures of embeddings with their unembeddings.

A model here is p(y|x) = exp(h(x).w(y) + b(y)) / sum. The same vector added to every w, and h -> A h with w -> A^-T w,
change no probability; models with equal probabilities differ by no more than that, if h and w span their space.
"""
