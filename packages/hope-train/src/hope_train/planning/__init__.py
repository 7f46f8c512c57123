"""What a run costs before it starts: FLOPs, peak memory, the machine, the scales."""
