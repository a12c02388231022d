"""`python -m minicarlo.cli`."""

from minicarlo.cli import main

main()
