"""Proposition 2, position in the natural frequency."""
