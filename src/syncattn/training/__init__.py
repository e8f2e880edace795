"""Training on text: data, tokenisers, a thin use of transformers.Trainer, comparison and reports."""
