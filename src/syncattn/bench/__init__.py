"""`syncattn bench`: how fast the operator, the block and the training step are, beside softmax attention."""
