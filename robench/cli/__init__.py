"""The command line: what a user types, and what a terminal shows.

Nothing is decided here: commands check their arguments, call the library, and print. Errors of robench
become one message on stderr and exit code 2.
"""

from robench.cli.main import main

__all__ = ["main"]
