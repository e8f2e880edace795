"""What an OSN is compared with besides the softmax Transformer: other attention in the same model."""
