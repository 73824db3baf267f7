"""Text and tokens. Nothing here knows torch."""
