"""Run a checkpoint on videos: the same as `videornn infer`."""

import sys

from videornn.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "infer")
    main()
