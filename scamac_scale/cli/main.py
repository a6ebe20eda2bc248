"""``scamac-scale``: find the command, run it, print what it returns, turn errors into one message and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from scamac_scale import __version__
from scamac_scale.errors import ConfigError, LostRankError, MemoryLimitError, ScamacError, choose
from scamac_scale.host.memory import advised, clear_frames, hold_reserve, memory_limit_bytes, readvised, shortage
from scamac_scale.host.outlet import outlets
from scamac_scale.host.printable import PrintableFormatter, one_line, printable
from scamac_scale.host.watched import Ended, hold_blas_buffers, watch
from scamac_scale.ranks.place import find_place, is_first
from scamac_scale.ranks.signals import CAUGHT, LAUNCHED, launcher_has_ended
from scamac_scale.remote.names import has_partial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from jsonargparse import Namespace

    from scamac_scale.cli.commands import Command

EXIT_BUG = 1
EXIT_NOT_WRITABLE = 4
EXIT_RESUMABLE = 75
EXIT_INTERRUPTED = 130
TEXT_ALONE = ("", "-h", "--help", "--version", "inspect", "evaluate")
"""Commands whose one result is what they print."""
NOT_WRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Arguments behind the program's name; None takes them from the process.

    Returns
    -------
    int
        0 done; 1 bug; 2 bad input, config or usage; 4 no space or not writable; 5 numerical failure; 75 stopped by a
        signal, what is done is kept for --resume; 130 stopped by a signal, nothing is kept.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is told in one message, not in stack traces
    arguments = list(sys.argv[1:] if argv is None else argv)
    with outlets() as (out, _):
        watched = watch(launcher_has_ended)
        if isinstance(watched, Ended):
            return _ended(watched, arguments)
        if watched is not None and LAUNCHED in os.environ:
            os.environ[LAUNCHED] = str(os.getppid())  # the process that watches stands for the launcher
        hold_reserve()
        try:
            code = _answer(arguments, is_debug="--debug" in arguments, is_limited=watched is not None)
        except MemoryError:  # while it was told
            code = _fail("out of memory.", MemoryLimitError.exit_code)
        out.flush()
        if out.error is not None:
            code = _untold(arguments, code, out.error)
        if watched is not None:
            watched.tell(code)
        return code


def _ended(process: Ended, arguments: list[str]) -> int:
    """Tell the end of a process that was watched, where it could not do so."""
    if process.code is not None:
        return process.code
    found = MemoryLimitError(
        f"out of memory: the process ended {process.how}, with {memory_limit_bytes():,} bytes of address space allowed (ulimit -v)"
    )
    return _fail(str(advised(found, arguments[0] if arguments else "")), MemoryLimitError.exit_code)


def _untold(arguments: list[str], code: int, error: OSError) -> int:
    """Say that standard output could not be written; the exit code, which is that of the work where the text is not all of it."""
    command = arguments[0] if arguments else ""
    is_text_all = code == 0 and (
        command in TEXT_ALONE or "--json" in arguments or not {"--help", "--help-all"}.isdisjoint(arguments)
    )
    message = f"standard output cannot be written: {error.strerror or error}"
    if code == 0 and not is_text_all:
        print(f"warning: {one_line(message)}; the work itself is done.", file=sys.stderr, flush=True)
        return code
    return _fail(f"{message}.", EXIT_NOT_WRITABLE if is_text_all else code)


def _answer(arguments: list[str], *, is_debug: bool, is_limited: bool) -> int:
    """Run what the arguments ask for; every error becomes one message, and the exit code."""
    args: Namespace | None = None
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview(), flush=True)
            return 0 if arguments else ConfigError.exit_code
        if arguments[0] == "--version":
            print(f"scamac-scale {__version__}")
            return 0
        command, args = _parse(arguments)
        if (code := _launched(arguments, args)) is not None:
            return code
        with _termination_as_interrupt(), _without_plots():
            if is_limited:
                hold_blas_buffers()
            _run(arguments[0], command, args)
        return 0
    except KeyboardInterrupt:
        return _stopped(args, is_debug)
    except SystemExit as stop:  # --help and --print_config end inside the parser
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: one message instead of a traceback
        return _explain(error, arguments[0], is_debug)


def _explain(error: Exception, command: str, is_debug: bool) -> int:
    """Say in one message what went wrong; the exit code that it means."""
    if (found := shortage(error)) is not None:
        clear_frames(error)  # they hold what filled the memory
        error = advised(found, command)
    elif isinstance(error, MemoryLimitError):
        error = readvised(error, command)
    if isinstance(error, LostRankError):  # each rank has its own view
        return _fail(str(error), error.exit_code, is_debug)
    if isinstance(error, MemoryLimitError) and not is_first():  # so have those that lack something
        return _fail(f"rank {find_place().world.rank}: {error}", error.exit_code, is_debug)
    if isinstance(error, ScamacError):
        return _fail(str(error), error.exit_code, is_debug) if is_first() else error.exit_code
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return _fail(f"{error.filename or 'the output'}: {error.strerror}.", EXIT_NOT_WRITABLE, is_debug)
    return _bug(error, is_debug)


def _launched(arguments: list[str], args: Namespace) -> int | None:
    """Start the processes that ``--devices`` asks for, unless this is one of them; the exit code of the job."""
    n_devices, n_nodes = getattr(args, "devices", 1), getattr(args, "num_nodes", 1)
    for name, value in (("devices", n_devices), ("num-nodes", n_nodes)):
        if value < 1:
            raise ConfigError(f"--{name} {value}; it must be at least 1.")
    n_ranks = find_place().world.size
    if n_ranks > 1 and n_devices * n_nodes not in (1, n_ranks):
        raise ConfigError(
            f"--devices {n_devices} and --num-nodes {n_nodes} ask for {n_devices * n_nodes} processes, but the launcher has started {n_ranks}; "
            "leave both out under torchrun and srun."
        )
    if n_devices * n_nodes == 1 or n_ranks > 1:
        return None
    from scamac_scale.ranks.launcher import find_nodes, launch

    train = getattr(args, "train", None)
    return launch(
        arguments,
        n_devices,
        find_nodes(n_nodes),
        max_restarts=getattr(args, "max_restarts", 0),
        timeout_s=train.timeout_s if train else 60.0,
    )


def _parse(arguments: list[str]) -> tuple[Command, Namespace]:
    from scamac_scale.cli.commands import COMMANDS
    from scamac_scale.cli.parsing import build_parser, parse, take_settings_of_run

    command = choose(COMMANDS, arguments[0], "command")
    parser = build_parser(arguments[0], command.summary, command.usage, has_json_file=command.has_json_file)
    command.declare(parser)
    take_settings_of_run(parser, arguments[1:], command.config)
    return command, parse(parser, arguments[1:], command.config, command.prefix)


def _run(name: str, command: Command, args: Namespace) -> None:
    from scamac_scale.cli.show import print_json, print_lines, print_result
    from scamac_scale.progress import show_progress

    is_quiet = getattr(args, "quiet", False) or not is_first()
    train = getattr(args, "train", None)
    show_progress(not is_quiet, every_s=train.log_every_s if train else 10.0)
    try:
        with _log_to_stderr(logging.WARNING if is_quiet else logging.INFO):
            result = command.run(args)
    finally:
        show_progress(False)
    json_target = getattr(args, "json", None) if is_first() else None
    if json_target is not None:
        print_json(result, json_target)
    if json_target != "-" and not is_quiet:
        if command.tell is None:
            print_result(f"scamac-scale {name}", result)
        else:
            print_lines(command.tell(result))
    sys.stdout.flush()


def _overview() -> str:
    from scamac_scale.cli.commands import COMMANDS

    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: scamac-scale COMMAND [options]\n\n"
        "scAMAC single-cell clustering for atlases of any size.\n\n"
        f"commands:\n{commands}\n\n"
        "`scamac-scale COMMAND --help` lists the options of a command; start with `scamac-scale demo`."
    )


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to the standard error of the moment: a progress bar puts itself in its place while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


@contextmanager
def _log_to_stderr(level: int) -> Iterator[None]:
    logger = logging.getLogger("scamac_scale")
    handler, before = _StandardError(), logger.level
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, and SIGUSR1 as Slurm sends it, unwind like Ctrl-C does, so that nothing half-written stays."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in CAUGHT if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _without_plots() -> Iterator[None]:
    """Keep matplotlib out, which igraph imports where it is: that takes a second and a place to write. A report lets it in."""
    is_kept_out = "matplotlib" not in sys.modules
    if is_kept_out:
        sys.modules["matplotlib"] = None  # type: ignore[assignment]  # as Python marks what must not be imported
    try:
        yield
    finally:
        if is_kept_out and sys.modules.get("matplotlib") is None:  # a report has let it in
            sys.modules.pop("matplotlib", None)


def _stopped(args: Namespace | None, is_debug: bool) -> int:
    if getattr(args, "train", None) is not None:
        return _fail("stopped by a signal; run again with --resume.", EXIT_RESUMABLE, is_debug)
    out = getattr(args, "out", None)
    if out and has_partial(out, getattr(args, "scratch", None)):
        return _fail("stopped by a signal; what is done is kept, run again with --resume.", EXIT_RESUMABLE, is_debug)
    return _fail("stopped by a signal; no result is saved, the same command starts anew.", EXIT_INTERRUPTED, is_debug)


def _bug(error: Exception, is_debug: bool) -> int:
    hint = "" if is_debug else " This is a bug; --debug shows where."
    return _fail(f"{type(error).__name__}: {' '.join(str(error).split())}{hint}", EXIT_BUG, is_debug)


def _fail(message: str, code: int, is_debug: bool = False) -> int:
    if is_debug:
        trace = printable(traceback.format_exc(), keep="\n")
        # behind a bar: a line feed in a message cannot begin a line of ours
        print("".join(f"| {line}\n" for line in trace.splitlines()), end="", file=sys.stderr)
    print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    return code
