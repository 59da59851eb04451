"""Benchmarks of gramless: asv suites (bench_*.py), the peers they are compared with, and a report for one machine."""
