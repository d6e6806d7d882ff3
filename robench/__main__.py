"""`python -m robench` is the command line."""

from robench.cli import main

main()
