"""Test a checkpoint: the same as `videornn test`."""

import sys

from videornn.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "test")
    main()
