"""Evaluation with error bars: bits per byte, continuation choice, passkey, report."""
