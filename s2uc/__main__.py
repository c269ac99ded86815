"""`python -m s2uc`."""

from s2uc.cli import main

main()
