"""The definitions: each kernel once in plain NumPy float64, written to be read and to test the fast ones against."""
