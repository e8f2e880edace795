"""Theorem 1, universality: what is true of it."""
