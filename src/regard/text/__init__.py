"""Text and tokens, without torch."""
