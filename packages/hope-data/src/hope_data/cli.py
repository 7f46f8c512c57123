"""Console script of hope-data."""


def main() -> int:
    """Run the command line."""
    return 0
