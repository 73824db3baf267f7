"""regard's attention in models that others wrote."""
