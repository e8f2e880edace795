"""The pictures: one module a section, each function from the numbers to a matplotlib Figure."""
