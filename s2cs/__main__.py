"""Run the command line as `python -m s2cs`."""

from s2cs.cli import main

main()
