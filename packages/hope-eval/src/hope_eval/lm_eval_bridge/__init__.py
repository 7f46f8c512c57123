"""Zero-shot tasks with lm-eval's own definitions, from the hub or from a local mirror of the original fields."""
