"""Theorem 2, natural sparsity."""
