"""Models: the interface (`seq2seq.py`), the recurrent and the Transformer encoder–decoder, and how they are built."""
