"""Console script of hope-eval."""


def main() -> int:
    """Run the command line."""
    return 0
