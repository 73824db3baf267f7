"""Recording and replacing the attention of models: regard's own, torch modules, and those from transformers."""
