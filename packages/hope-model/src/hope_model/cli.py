"""Console script of hope-model."""


def main() -> int:
    """Run the command line."""
    return 0
