"""HSIC and CKA of two arrays by any kernel, with tests, samples and random features."""
