"""`python -m videornn`, and what torchrun starts with `-m videornn`."""

from videornn.cli import main

if __name__ == "__main__":
    main()
