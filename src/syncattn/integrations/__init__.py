"""The operator in other people's code: what each module here needs is imported with it, not with syncattn."""
