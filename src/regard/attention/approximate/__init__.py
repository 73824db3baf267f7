"""Attention that costs less than T × S; each variant says what it approximates, and its map is what it really does."""
