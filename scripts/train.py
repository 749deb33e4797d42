"""Train a network: the same as `videornn train`."""

import sys

from videornn.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
