"""Several processes: torch distributed, DeepSpeed ZeRO."""
