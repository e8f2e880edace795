"""The closed form beside the Kuramoto model that it is taken from, integrated."""
