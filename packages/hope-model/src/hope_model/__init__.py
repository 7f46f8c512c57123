"""HOPE, Titans, gated DeltaNet and Transformer++ behind one interface and one recurrence."""
