"""Figure 4: weight matrices at initialisation, beside those of random softmax layers."""
