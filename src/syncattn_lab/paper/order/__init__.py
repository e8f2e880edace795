"""Figure 5: the order parameter at initialisation."""
