"""The evaluators: each makes its items, asks a model, and returns typed results."""
