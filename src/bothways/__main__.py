"""`python -m bothways` is `bothways`."""

from bothways.cli import main

if __name__ == "__main__":
    main()
