"""regard's attention inside torch modules and models of transformers."""
