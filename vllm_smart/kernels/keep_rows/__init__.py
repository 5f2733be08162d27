"""Rows of hidden states on their way to where they are kept, from several tensors side by side."""
