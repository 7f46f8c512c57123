"""Validation: of text by windows, of a task by sequences."""
