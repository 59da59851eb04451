"""What the tests share: cases, independent oracles, the accumulator contract, memory peaks, and every bound."""
