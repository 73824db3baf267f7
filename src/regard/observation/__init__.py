"""Recording and replacing the attention of any model: regard's own, torch modules, models of transformers."""
