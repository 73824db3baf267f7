"""Scenes of emoji: generated pictures with captions and questions."""
