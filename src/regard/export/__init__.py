"""Trained models as folders for other programs."""
