"""Attention over a sequence that several processes hold in shards."""
