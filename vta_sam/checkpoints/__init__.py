"""Weights that others have released: where they come from, and where they lie."""
