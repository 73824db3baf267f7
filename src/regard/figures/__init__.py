"""Drawings of attention: arrays and labels in, a picture out; these modules know no model."""
