"""Figure 3 and Table 1: throughput, latency and peak memory of a block, beside the published A100 figures."""
