"""Layers with parameters: embedding, attention of several heads, blocks, the attentional recurrent step, state."""
