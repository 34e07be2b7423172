"""Many processes, each with one photograph at a time, none of which can take the others down.

A photograph that kills its process, hangs it, or fills the memory is rejected for that, and a fresh process goes on.
Ours and not pebble's pool, which has the time limit and the fresh process but does not tell which process has which
photograph, so that nobody could watch its memory (a limit by the system counts what a graphics card maps).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.data.prepare.annotate import Outcome, look_at
from trainer.data.prepare.picture import register_formats
from trainer.data.prepare.providers import Providers, make_providers
from trainer.data.prepare.record import Item
from trainer.data.prepare.settings import Limits, Settings

_TICK = 0.25  # seconds between two looks at time and memory
_ATTEMPTS = 2  # at a photograph during which the process died, perhaps for another reason
_READY = "ready"


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    item: Item | None = None
    attempt: int = 1
    since: float = 0.0
    ready: bool = False


def look_at_all(items: Iterable[Item], settings: Settings, workers: int, limits: Limits) -> Iterator[Outcome]:
    """What becomes of every photograph, in the order in which they are finished.

    Args:
        items: taken one by one as processes become idle, never ahead.
        settings: for all of them.
        workers: processes; 0 does the work in this one, without limits.
        limits: of one photograph.

    Raises:
        BokehError: the providers cannot be loaded.
    """
    if workers == 0:
        providers = prepare_process(settings, 0)
        for item in items:
            yield look_at(item, providers, settings)
        return
    pool = _Pool(settings, workers, limits)
    try:
        yield from pool.run(iter(items))
    finally:
        pool.stop()


def process_context() -> Any:
    """How processes are started that have models in them, with what takes long to import imported once.

    Not by `fork`: torch and onnxruntime have threads, which a fork does not survive.
    """
    if sys.platform in ("win32", "darwin"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.data.prepare.annotate", "trainer.data.pairs.render"])
    return context


def prepare_process(settings: Settings, threads: int) -> Providers:
    """Get a process ready for photographs: formats, providers, and so many threads (0: as many as it likes)."""
    if threads:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    warnings.filterwarnings(
        "ignore", module="PIL"
    )  # of damage, thousands of times; what counts is said as a reason
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    register_formats()
    return make_providers(settings)


class _Pool:
    def __init__(self, settings: Settings, workers: int, limits: Limits) -> None:
        self.context = process_context()
        self.settings, self.limits = settings, limits
        self.threads = max(1, (os.cpu_count() or 1) // workers)
        self.again: list[tuple[Item, int]] = []
        self.workers = [self._start() for _ in range(workers)]

    def run(self, items: Iterator[Item]) -> Iterator[Outcome]:
        exhausted = False
        while True:
            for worker in self.workers:
                if not worker.ready or worker.item is not None:
                    continue
                if self.again:
                    self._give(worker, *self.again.pop())
                elif not exhausted:
                    item = next(items, None)
                    exhausted = item is None
                    if item is not None:
                        self._give(worker, item, 1)
            busy = any(worker.item is not None for worker in self.workers)
            if exhausted and not busy and not self.again:
                return
            yield from self._listen()

    def stop(self) -> None:
        for worker in self.workers:
            worker.pipe.close()  # an idle one ends by itself
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()

    def _listen(self) -> Iterator[Outcome]:
        by_pipe = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(by_pipe), timeout=_TICK):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                said = worker.pipe.recv()
            except (EOFError, OSError):
                yield from self._died(worker)
                continue
            if isinstance(said, Outcome):
                worker.item = None
                yield said
            elif said == _READY:
                worker.ready = True
            else:
                raise BokehError(str(said))
        for worker in self.workers:
            if worker.item is None:
                continue
            if time.monotonic() - worker.since > self.limits.timeout:
                yield self._end(worker, "timeout", f"more than {self.limits.timeout:g} seconds")
            elif (used := _memory(worker.process) / 2**30) > self.limits.memory:
                yield self._end(worker, "memory", f"{used:.1f} GiB, more than {self.limits.memory:.3g}")

    def _give(self, worker: _Worker, item: Item, attempt: int) -> None:
        worker.item, worker.attempt, worker.since = item, attempt, time.monotonic()
        with suppress(OSError):  # it has died; listening to it tells
            worker.pipe.send(item)

    def _died(self, worker: _Worker) -> Iterator[Outcome]:
        worker.process.join(5)
        code, item = worker.process.exitcode, worker.item
        if not worker.ready:
            raise BokehError(
                f"A process ended with exit code {code} while it loaded the providers (-9: killed, as for lack of "
                "memory). Use fewer --workers, or --workers 0 to see what it says."
            )
        if item is not None and worker.attempt < _ATTEMPTS:
            self.again.append((item, worker.attempt + 1))
        elif item is not None:
            yield Outcome(
                item.id,
                reason="crashed",
                detail=f"its process ended {_ATTEMPTS} times, exit code {code}",
            )
        self._replace(worker)

    def _end(self, worker: _Worker, reason: str, detail: str) -> Outcome:
        item = worker.item
        assert item is not None
        worker.process.kill()
        worker.process.join()
        self._replace(worker)
        return Outcome(item.id, reason=reason, detail=detail)

    def _replace(self, worker: _Worker) -> None:
        worker.pipe.close()
        self.workers[self.workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.settings, self.threads), daemon=True)
        process.start()
        theirs.close()  # so that its end is noticed here
        return _Worker(process, ours)


def _work(pipe: Connection, settings: Settings, threads: int) -> None:
    """What a process does until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process tells when to stop
    try:
        providers = prepare_process(settings, threads)
    except (BokehError, ImportError) as error:
        pipe.send(str(error))
        return
    try:
        pipe.send(_READY)
        while True:
            pipe.send(look_at(pipe.recv(), providers, settings))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _memory(process: BaseProcess) -> int:
    """Bytes of physical memory of a process; 0 where it has just ended."""
    import psutil

    try:
        return psutil.Process(process.pid).memory_info().rss
    except psutil.Error:
        return 0
