"""Measures: short, pure functions of the states that a pass over the data leaves behind."""
