"""Starts the processes of one machine and watches over them: ``--devices N``, with ``--num-nodes M`` on each of M machines.

What torchrun does, but for three things: the exit code is that of the rank which failed first, ranks that are saving a checkpoint are
not stopped by the end of another one, and the rank that was killed is named. Nothing here needs torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scamac_scale.errors import ConfigError, LostRankError
from scamac_scale.ranks.board import listen
from scamac_scale.ranks.place import LOOPBACK
from scamac_scale.ranks.rendezvous import LISTENER
from scamac_scale.ranks.secret import SECRET, SECRET_FILE, new_secret
from scamac_scale.ranks.signals import CAUGHT, LAUNCHED

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from types import FrameType

GRACE_S = 30.0
"""Seconds, beyond the time that ranks wait for one another, in which a job ends after one of them has failed or hangs."""
KILL_S = 10.0
"""Seconds between asking a rank to stop and killing it, once the others are gone."""
DEFAULT_PORT = 29400
PROGRAM = "scamac_scale"
"""What each process runs, as ``python -m``."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The machines of a job, as seen from one of them.

    Attributes
    ----------
    count
        How many there are.
    rank
        Which one this is.
    address, port
        Where rank 0 of the job is to be met; port 0 of one machine is any that is free.
    is_unnamed
        Whether this is the first of several machines, and does not know by what address the others find it.
    """

    count: int
    rank: int
    address: str
    port: int
    is_unnamed: bool = False


def find_nodes(count: int, environ: Mapping[str, str] | None = None) -> Nodes:
    """Tell which machine of a job this is, from the variables that platforms set.

    Parameters
    ----------
    count
        Machines of the job.
    environ
        Variables of the environment; None takes those of this process.

    Returns
    -------
    Nodes
        From ``NODE_RANK`` and ``MASTER_ADDR``; a Kubernetes Indexed Job has ``JOB_COMPLETION_INDEX``, AWS Batch
        ``AWS_BATCH_JOB_NODE_INDEX`` and ``AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS``, Slurm ``SLURM_NODEID``.

    Raises
    ------
    ConfigError
        If there are several machines and nothing says which one this is, or where the first one is.
    """
    found = os.environ if environ is None else environ
    port = _number(found, "MASTER_PORT")
    if count == 1:
        return Nodes(count=1, rank=0, address="127.0.0.1", port=port or 0)
    names = ("NODE_RANK", "JOB_COMPLETION_INDEX", "AWS_BATCH_JOB_NODE_INDEX", "SLURM_NODEID", "GROUP_RANK")
    rank = next((_number(found, name) for name in names if found.get(name)), None)
    address = found.get("MASTER_ADDR") or found.get("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS")
    is_unnamed = address is None and rank == 0 and "AWS_BATCH_JOB_NODE_INDEX" in found
    if is_unnamed:
        address = "127.0.0.1"  # the main node is not told its own; it listens on all
    if rank is None or address is None or not 0 <= rank < count:
        raise ConfigError(
            f"--num-nodes {count}, but the environment does not say which machine this is (one of {', '.join(names)}, 0 to {count - 1}) "
            "and where the first one is (MASTER_ADDR); set them, or use torchrun or srun."
        )
    return Nodes(count=count, rank=rank, address=address, port=port or DEFAULT_PORT, is_unnamed=is_unnamed)


def _number(found: Mapping[str, str], name: str) -> int | None:
    value = found.get(name)
    try:
        return int(value) if value else None
    except ValueError as error:
        raise ConfigError(
            f"the environment says {name}={value!r}, which is no number; set it to one, or unset it."
        ) from error


def launch(
    arguments: Sequence[str], n_devices: int, nodes: Nodes, *, max_restarts: int = 0, timeout_s: float = 60.0
) -> int:
    """Run the same command in several processes until all have ended.

    Parameters
    ----------
    arguments
        Of the command line.
    n_devices
        Processes on this machine.
    nodes
        All machines; the same command is started on each.
    max_restarts
        How often to start again, with ``--resume``, after a rank was lost or crashed; not after a signal to this process.
    timeout_s
        How long ranks wait for one another.

    Returns
    -------
    int
        0, or the exit code of the rank that failed first; 75 where that was killed.

    Raises
    ------
    LostRankError
        If a rank was killed or hung; names it.
    """
    for attempt in range(max_restarts + 1):
        again = [] if attempt == 0 or "--resume" in arguments else ["--resume"]
        ranks = _Ranks([*arguments, *again], n_devices, nodes)
        with ranks:
            code = ranks.wait(timeout_s)
        may_help = code in (1, LostRankError.exit_code) and not ranks.is_told_to_stop
        if code == 0 or not may_help or attempt == max_restarts:
            break
        sys.stderr.write(f"starting again ({attempt + 1} of {max_restarts}): {ranks.story or 'a rank failed'}\n")
    if ranks.story:
        error = LostRankError(ranks.story)
        error.exit_code = code
        raise error
    return code


class _Ranks:
    """The processes of this machine; a context manager that leaves none behind."""

    def __init__(self, arguments: Sequence[str], n_devices: int, nodes: Nodes) -> None:
        self._command = [sys.executable, "-m", PROGRAM, *arguments]
        self._n_devices, self._nodes = n_devices, nodes
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._before: dict[int, signal.Handlers] = {}
        self._signal: int | None = None
        self._told: set[int] = set()
        self.story = ""

    def __enter__(self) -> _Ranks:
        for number in CAUGHT:
            self._before[number] = signal.signal(number, self._forward)  # type: ignore[assignment]  # handlers of any kind
        try:
            with ExitStack() as stack:
                listener = stack.enter_context(self._listener()) if self._nodes.count == 1 else None
                self._start(self._shared(listener), listener)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _listener(self) -> socket.socket:
        """Take the port on which rank 0 listens; nobody else can have it before that does."""
        try:
            return listen(LOOPBACK, self._nodes.port)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"MASTER_PORT={self._nodes.port} cannot be taken: {reason}; unset it, and a free one is found."
            ) from error

    def _shared(self, listener: socket.socket | None) -> dict[str, str]:
        """Variables of all ranks; those of one machine get a secret that nobody else has ever seen."""
        threads = str(max(1, (os.cpu_count() or 1) // self._n_devices))
        port = self._nodes.port if listener is None else listener.getsockname()[1]
        found = {name: value for name, value in os.environ.items() if name != LISTENER}
        if listener is not None:
            found.pop(SECRET_FILE, None)
            found[SECRET] = new_secret()
        return {
            **found,
            "WORLD_SIZE": str(self._n_devices * self._nodes.count),
            "LOCAL_WORLD_SIZE": str(self._n_devices),
            "MASTER_ADDR": "0.0.0.0" if self._nodes.is_unnamed else self._nodes.address,
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            LAUNCHED: str(os.getpid()),
        }

    def _start(self, shared: dict[str, str], listener: socket.socket | None) -> None:
        for local in range(self._n_devices):
            rank = self._nodes.rank * self._n_devices + local
            environ = {**shared, "RANK": str(rank), "LOCAL_RANK": str(local)}
            handles = [listener.fileno()] if listener is not None and rank == 0 else []
            if handles:
                environ[LISTENER] = str(handles[0])
            # a session of its own: Ctrl-C on the terminal reaches a rank once, from here
            self._processes[rank] = subprocess.Popen(
                self._command, env=environ, start_new_session=True, pass_fds=handles
            )
            if self._signal is not None and rank not in self._told:  # it came while this rank was started
                self._forward(self._signal, None, [rank])

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None, ranks: Sequence[int] = ()) -> None:
        self._signal = number
        for rank in ranks or list(self._processes):
            self._told.add(rank)
            if self._processes[rank].poll() is None:
                self._processes[rank].send_signal(number)

    @property
    def is_told_to_stop(self) -> bool:
        """Whether this process got a signal."""
        return self._signal is not None

    def wait(self, timeout_s: float) -> int:
        """Wait for all ranks; tell the exit code of the job."""
        failed: dict[int, int] = {}
        deadline: float | None = None
        while True:
            codes = {rank: process.poll() for rank, process in self._processes.items()}
            failed |= {rank: code for rank, code in codes.items() if code and rank not in failed}
            if None not in codes.values():
                break
            if failed and deadline is None:
                deadline = time.monotonic() + self._patience_s(failed, timeout_s)
            if deadline is not None and time.monotonic() > deadline:
                self._end(failed)
                break
            time.sleep(0.05)
        if not failed:
            return 0
        killed = {rank: -code for rank, code in failed.items() if code < 0}
        if killed:
            named = "; ".join(
                f"rank {rank} was killed by {signal.Signals(number).name}" for rank, number in killed.items()
            )
            hint = (
                " (as the system does where memory runs out)"
                if signal.SIGKILL in killed.values() and not self.story
                else ""
            )
            self.story = f"{self.story + '; ' if self.story else ''}{named}{hint}; run again with --resume."
        own = [code for code in failed.values() if code > 0 and code != LostRankError.exit_code]
        return own[0] if own else LostRankError.exit_code

    def _patience_s(self, failed: dict[int, int], timeout_s: float) -> float:
        """Seconds that the other ranks still have: to notice that one has gone, unless one that has noticed was the first to end."""
        has_waited = LostRankError.exit_code in failed.values() and not self.is_told_to_stop
        return GRACE_S / 3 if has_waited else timeout_s + GRACE_S / 2

    def _end(self, failed: dict[int, int]) -> None:
        """Kill the ranks that did not end by themselves."""
        left = [rank for rank, process in self._processes.items() if process.poll() is None]
        self.story = (
            f"rank{'s' if len(left) > 1 else ''} {', '.join(map(str, left))} did not end after another one had failed"
        )
        for rank in left:
            self._processes[rank].terminate()
        last_s = time.monotonic() + KILL_S
        while time.monotonic() < last_s and any(self._processes[rank].poll() is None for rank in left):
            time.sleep(0.05)
        for rank in left:
            if self._processes[rank].poll() is None:
                self._processes[rank].kill()
            failed[rank] = self._processes[rank].wait()
