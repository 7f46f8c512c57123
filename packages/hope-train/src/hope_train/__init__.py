"""Training that can be killed, scaled and believed."""
