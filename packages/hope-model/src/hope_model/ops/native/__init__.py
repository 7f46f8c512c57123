"""The chunk steps as C++ kernels for CPUs (an option: without a compiler torch does the same)."""
