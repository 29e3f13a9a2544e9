"""What all tools share: errors in one line, waiting, and running a command."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ToolError(Exception):
    """What we can't do. The message is why, and what to do next."""


def wait_until(
    condition: Callable[[], object], description: object, timeout: float = 30
) -> None:
    """Check the condition every 20 ms until it's true. The timeout is in seconds.

    Raises ToolError, with the description as it is then, after the timeout.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ToolError(f"Timed out after {timeout} s: {description}")
        time.sleep(0.02)


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """Run a command and return its standard output.

    Raises ToolError, with the command's error output, if it fails.
    """
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # the user's Ctrl+C must not interrupt a clean-up
    ) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            process.terminate()  # and wait until it has exited: it might clean up
            raise
    if process.returncode:
        # Indented lines are Docker Compose's progress.
        lines = [line for line in errors.splitlines() if not line.startswith(" ")]
        reason = "\n".join(lines) or f"exit status {process.returncode}"
        raise ToolError(f"{' '.join(command)}: {reason}")
    return output


@contextlib.contextmanager
def ignore_signals() -> Iterator[None]:
    """Let nothing that a user can send from a terminal interrupt a clean-up."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def exit_on_error(main: Callable[[], None]) -> None:
    """Call main(). Clean up after a signal. Print what a user can cure in one line."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def interrupt(signum: int, frame: object) -> None:
        for number in SIGNALS:  # once is enough: nothing may interrupt the clean-up
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except ToolError as error:
        sys.exit(f" [!] {error}")
    except OSError as error:  # such as a file of another user, or a full disk
        sys.exit(f" [!] {error}. Does it belong to you, and is there space?")
