"""Deep memories as Triton kernels: one launch walks all chunks of a call (see README.md)."""
