"""Attention maps: exact weights on demand, without the T × S matrix."""
