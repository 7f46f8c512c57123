"""Entry point of hope-model: Ctrl-C during imports is one line, too."""

import sys


def main() -> int:
    try:
        from hope_model.cli import main as run  # noqa: PLC0415

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
