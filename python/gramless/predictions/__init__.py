"""Comparison of what two models predict: divergences, agreement and logit distance."""
