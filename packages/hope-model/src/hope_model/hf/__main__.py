"""`python -m hope_model.hf CHECKPOINT TOKENIZER OUT`."""

import sys

from hope_model.hf.export import main

if __name__ == "__main__":
    sys.exit(main())
