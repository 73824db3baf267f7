"""Weights that others have trained, read into our own models; one file for each family."""
