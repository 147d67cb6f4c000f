"""`python -m lora_runtime` is the command `lora-runtime`."""

import sys

from lora_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
