"""States: frozen sums of one pass over data, which merge."""
