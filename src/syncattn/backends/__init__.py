"""The ways of computing the one operator, and the choice among them."""

from syncattn.backends.select import Explanation, availability, explain, use_backend

__all__ = ["Explanation", "availability", "explain", "use_backend"]
