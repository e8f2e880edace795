"""Figure 1, the concept: one sentence, one head, two groups of frequencies, and what the operator makes."""
