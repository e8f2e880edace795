"""Figure 2, the architecture: what the blocks consist of, and replacing one by another."""
