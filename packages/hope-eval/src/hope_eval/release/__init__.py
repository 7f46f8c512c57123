"""A checkpoint with all that belongs to it in one folder, and its model card."""
