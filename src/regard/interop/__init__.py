"""regard's attention inside torch modules and models from the transformers library."""
