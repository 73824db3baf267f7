"""Trained models ready to use: from an input to a result, one module per task."""
