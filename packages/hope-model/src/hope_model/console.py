"""Entry point of hope-model: torch takes seconds to import, and Ctrl-C ends them in one line, too."""

import sys


def main() -> int:
    """Run the command line."""
    try:
        from hope_model.cli import main as run  # noqa: PLC0415

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
