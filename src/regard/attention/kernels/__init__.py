"""Kernels: kernel(query, key, value, spec, seed) -> (output, rows). Reference is the meaning; the others are speed."""
