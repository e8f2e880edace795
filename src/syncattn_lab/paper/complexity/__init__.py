"""Proposition 1: what the operator costs."""
