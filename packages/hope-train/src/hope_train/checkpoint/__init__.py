"""What a run keeps: tensors and position, what may change in between, verification."""
