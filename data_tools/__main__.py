"""`python -m vitscale_data_tools` is the `vitscale-data` command."""

from .cli import main

if __name__ == "__main__":
    main()
