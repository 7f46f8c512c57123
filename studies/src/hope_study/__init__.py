"""Ablation studies above training and evaluation: what is run, what is kept, and what it says."""
