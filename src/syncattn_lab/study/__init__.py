"""The quality study: many small training runs that a plan file lists, and what they add up to."""
