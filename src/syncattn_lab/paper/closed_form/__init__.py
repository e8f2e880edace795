"""The closed form: one pass without an ODE."""
