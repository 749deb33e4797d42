"""Run the command line for `python -m videornn` and for torchrun's `-m videornn`."""

from videornn.cli import main

if __name__ == "__main__":
    main()
