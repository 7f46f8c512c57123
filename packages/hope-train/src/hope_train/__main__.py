"""`python -m hope_train` is `hope-train`; torchrun wants a module."""

import sys

from hope_train.cli import main

sys.exit(main())
