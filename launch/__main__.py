"""`python -m vitscale_launch`."""

from .cli import main

main()
