"""`python -m regard` is the `regard` command."""

import os
import signal


def main() -> None:
    """The `regard` command; interrupted while it is imported, it ends at once and says nothing."""
    _open_closed_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from regard.cli.main import main as command

    command()


def _open_closed_streams() -> None:
    """Open the null device in the place of closed standard streams: a file opened later would be written errors to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


if __name__ == "__main__":
    main()
