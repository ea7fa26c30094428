"""Several runs at once, one process each: on a CPU, two small runs of one thread beat one run of two threads.

Workers report to the process that started them and die with it; a run that was cut off resumes from its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from itertools import islice
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from pe_core import hardware, process, progress
from pe_core.errors import LabError, TrainingError
from pe_core.records import Record

Result = TypeVar("Result")


def for_each_run(measure: Callable[..., Any], trained: Sequence[Record], *arguments: Any) -> None:
    """On a CPU `measure(folder, *arguments)` for the runs whose weights are there, if several, in a process each: what it keeps
    in their folders is then only read. Elsewhere nothing: the caller, who reads it, measures what is not there."""
    jobs = {record.run: (record.folder, *arguments) for record in trained if record.has_weights}
    if hardware.device("auto") == "cpu" and len(jobs) > 1:
        map_processes(measure, jobs, min(cores(), len(jobs)))


def map_processes(function: Callable[..., Result], jobs: dict[str, tuple[Any, ...]], workers: int) -> list[Result]:
    """`function(*arguments)` for every named job, each in a process of its own, at most `workers` at a time.

    The cores are shared evenly. Results keep the order of the jobs. One that fails does not stop the others; Ctrl-C
    stops all.

    Raises:
        TrainingError: some jobs failed, or their processes died without a word (killed, or out of memory).
    """
    context = _context()
    messages = context.Queue()
    place = os.getcwd(), dict(os.environ)
    board = progress.Board(list(jobs))
    reader = threading.Thread(target=_read, args=(messages, board), daemon=True)
    reader.start()
    threads = max(1, cores() // workers)
    waiting = iter(jobs.items())
    results: dict[str, Result] = {}
    failures: dict[str, Exception] = {}
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    try:
        while len(results) + len(failures) < len(jobs):
            for name, arguments in islice(waiting, workers - len(running)):
                ours, theirs = context.Pipe(duplex=False)
                worker: BaseProcess = context.Process(
                    target=_work, args=(theirs, messages, place, threads, name, function, arguments)
                )
                worker.start()
                theirs.close()
                running[ours] = name, worker
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                name, worker = running[connection]
                try:
                    error, result = connection.recv()
                except EOFError:
                    error, result = TrainingError("its process died (killed, or out of memory)"), None
                if error is None:
                    results[name] = result
                else:
                    failures[name] = error
                    progress.say(f"{name} failed: {error}")
                worker.join()
                del running[connection]
        raise_all(failures, len(jobs))
        return [results[name] for name in jobs]
    finally:
        for _, worker in running.values():
            worker.terminate()
        for _, worker in running.values():
            worker.join()
        messages.put(None)
        reader.join(timeout=5)
        board.close()


def prepare() -> None:
    """Have the server that starts workers load what they need, beside whatever this process does next.

    Workers are forked from it within milliseconds instead of importing torch and the compiler each. (A process forked
    from this one would inherit threads that hold locks; the server has none.)
    """
    if isinstance(context := _context(), ForkServerContext):
        context.set_forkserver_preload(["pe_core.launch._server", "pe_core.launch.workers"])
        forkserver.ensure_running()


def _context() -> ForkServerContext | SpawnContext:
    process.tune()  # the server and its workers inherit the environment
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def raise_all(failures: dict[str, Exception], jobs: int) -> None:
    """One error that tells of all failed jobs, in one line. A mistake in the code comes up as it is."""
    for error in failures.values():
        if not isinstance(error, LabError):
            raise error
    if failures:
        reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise TrainingError(
            f"{len(failures)} of {jobs} runs failed, the others are kept and the same command goes on from there: {reasons}"
        )


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(messages: Any, board: progress.Board) -> None:
    while (message := messages.get()) is not None:
        board.show(message)


def _work(
    connection: Connection,
    messages: Any,
    place: tuple[str, dict[str, str]],
    threads: int,
    name: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Runs in a worker: does one job, sends (error, result)."""
    os.chdir(place[0])  # the server may have been started elsewhere
    os.environ.update(place[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    process.tune()
    import torch

    torch.set_num_threads(threads)
    progress.to_parent(messages.put, name)
    try:
        answer: tuple[Exception | None, Any] = None, function(*arguments)
    except Exception as error:
        if not isinstance(error, LabError):  # a mistake in the code: where it happened is what matters
            error.add_note(f"in the process of {name}:\n{traceback.format_exc()}")
        answer = error, None
    connection.send(answer)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
