"""Console script of hope-train."""


def main() -> int:
    """Run the command line."""
    return 0
