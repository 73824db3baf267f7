"""The explorer: a page that asks the model, on this machine alone."""
