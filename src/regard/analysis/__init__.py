"""Numbers and findings about attention; each works on maps and generations of any model."""
