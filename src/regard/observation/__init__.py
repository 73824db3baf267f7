"""Seeing into any model, and stepping in: regard's own, torch's, transformers'."""
