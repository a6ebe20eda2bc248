"""Meets a dask cluster: one that runs somewhere, or processes of this machine that are started and ended here.

This room alone imports dask, and only when a cluster is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import ssl
import tempfile
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from scamac_scale import __version__
from scamac_scale.errors import ClusterError, ConfigError, LostRankError, MissingExtraError, ScamacError
from scamac_scale.workers.address import EXPECTED, checked_address, is_encrypted

if TYPE_CHECKING:
    from collections.abc import Iterator

Client = Any
"""A ``distributed.Client``; dask is not imported for its type."""

WAIT_S = 30.0
"""How long a scheduler, and its first worker, are waited for."""
NAME = "scamac_scale"


@contextmanager
def connected(dask: Client | str | None, workers: int | None = None) -> Iterator[Client]:
    """Meet a cluster, and see that its processes have this version of this package.

    Parameters
    ----------
    dask
        Address of a scheduler (``tcp://host:port``), or a Client, which is left open; None starts processes here.
    workers
        Number of these processes, with one thread each.

    Yields
    ------
    Client
        Of ``distributed``.

    Raises
    ------
    MissingExtraError
        If dask is not installed.
    ConfigError
        If both or none are given, or they are no such things.
    LostRankError
        If the scheduler, or a worker of it, does not answer.
    ClusterError
        If a process lacks this package, or has another version.
    """
    if (dask is None) == (workers is None):
        raise ConfigError("give either the address of a dask scheduler (--dask) or a number of --workers.")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}; it must be at least 1.")
    if isinstance(dask, str):
        dask = checked_address(dask)
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError(f'dask is not installed; pip install "scamac-scale[dask]" ({error}).') from error
    if not isinstance(dask, str | distributed.Client | None):
        raise ConfigError(f"dask={dask!r}; expected an address such as tcp://host:8786, or a distributed.Client.")
    from distributed.utils import silence_logging_cmgr

    with contextlib.ExitStack() as stack:
        if not isinstance(dask, distributed.Client):
            stack.enter_context(silence_logging_cmgr(logging.CRITICAL))  # what is to be said is said by our errors
        if isinstance(dask, str):
            client = stack.enter_context(_client_of(dask))
        elif dask is None:
            client = stack.enter_context(_processes(workers or 1))
        else:
            client = dask
        _check_processes(client)
        yield client


@contextmanager
def _client_of(address: str) -> Iterator[Client]:
    import distributed

    kind: Any = distributed.Client  # Any: it has no types
    client = kind.__new__(kind)
    try:
        client.__init__(address, timeout=WAIT_S, set_as_default=False)
    except BaseException as error:
        _give_up(client)
        if not isinstance(error, Exception):
            raise
        raise _unreachable(address, error) from error
    with contextlib.closing(client):
        yield client


def _give_up(client: Client) -> None:
    """End a client whose making has failed: at the end of the process dask would wait a minute for it, and print a traceback."""
    with contextlib.suppress(
        Exception
    ):  # these are parts of dask's own: without them the error is told all the same, only later
        client.status = "closed"
        client._loop_runner.stop()


def _unreachable(address: str, error: Exception) -> ScamacError:
    """Say why no client was made: keys are missing or wrong, nobody answers, or dask does not know such addresses."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if is_encrypted(address) and isinstance(error, TypeError | FileNotFoundError | PermissionError | ssl.SSLError):
        return ConfigError(
            f"--dask {address} needs the keys of this cluster ({reason}); name their files as dask has it: "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY."
        )
    if isinstance(error, OSError | TimeoutError):
        return LostRankError(
            f"no dask scheduler answers at {address} ({reason}); start one with `dask scheduler`, and give the address that it tells."
        )
    return ConfigError(f"--dask {address} cannot be reached this way ({reason}); {EXPECTED}.")


@contextmanager
def _processes(workers: int) -> Iterator[Client]:
    import dask
    import distributed

    make_cluster: Any = distributed.LocalCluster  # Any: they have no types
    make_client: Any = distributed.Client
    with tempfile.TemporaryDirectory(prefix="scamac-workers-", ignore_cleanup_errors=True) as folder:
        with _children_without_interrupts(), dask.config.set({"temporary-directory": folder}):  # of the scheduler, too
            cluster = make_cluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
        with contextlib.closing(cluster), contextlib.closing(make_client(cluster, set_as_default=False)) as client:
            yield client


@contextmanager
def _children_without_interrupts() -> Iterator[None]:
    """Start processes that a Ctrl-C does not reach, which a terminal sends to all: this one alone answers it, and ends them.

    Notes
    -----
    Threads that are begun here start processes later, too; both inherit what is blocked. A Ctrl-C meanwhile comes at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would unblock them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGUSR1))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_processes(client: Client) -> None:
    """See that there are workers, and that all processes have this version."""

    def version_of(name: str) -> str | None:  # inside a function: sent as it is, and not as a name to be imported there
        import importlib

        try:
            return str(importlib.import_module(name).__version__)
        except ImportError:
            return None

    where = scheduler_of(client)
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
        versions = {f"the scheduler {where}": client.run_on_scheduler(version_of, NAME)}
        found = client.run(version_of, NAME, on_error="return")
    except (OSError, TimeoutError) as error:
        raise LostRankError(
            f"the dask scheduler {where} has no worker that answers ({error}); start some with `dask worker {where}`."
        ) from error
    versions |= {f"worker {address}": version for address, version in found.items()}
    for name, version in versions.items():
        if isinstance(version, Exception):
            raise ClusterError(f"{name} cannot be asked for its version ({type(version).__name__}: {version}).")
        check_version(version, name)


def check_version(version: str | None, name: str) -> None:
    """Refuse a process of another version of this package.

    Raises
    ------
    ClusterError
        Names the process and both versions.
    """
    if version is None:
        raise ClusterError(f"{name} has no scamac_scale; install version {__version__} there, as here.")
    if version != __version__:
        raise ClusterError(f"{name} has scamac_scale {version}, and here is {__version__}; install the same version.")


def scheduler_of(client: Client) -> str:
    """Address of the scheduler of a client, for messages."""
    return str(client.scheduler.address) if client.scheduler is not None else "that was given"
