"""Pages, pictures, metrics and comparisons of studies, computed from their records."""
