"""Work spread over forked processes, results in the order of the work, few pieces in flight.

`multiprocessing`'s own imap reads all of its input at once; a corpus does not fit. A worker that dies (out of memory,
say) ends the run with one error instead of a hang, and workers of a parent that is killed die with it: they would wait
for work for ever, for each holds the pipes of the others open.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from megatron_most.errors import DataError
from megatron_most.runtime.process import end_with_parent

X = TypeVar("X")
Y = TypeVar("Y")
_work: Callable[[Any], Any] | None = None


def num_cores(env: Mapping[str, str] = os.environ) -> int:
    """Cores that this process may use: those it is bound to, and no more than Slurm gave its task."""
    bound, given = len(os.sched_getaffinity(0)), env.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(bound, int(given))) if given.isdecimal() else bound


def in_order(work: Callable[[X], Y], pieces: Iterable[X], workers: int) -> Iterator[tuple[X, Y]]:
    """(piece, work(piece)) for each piece. One worker is this process itself."""
    if workers <= 1:
        yield from ((piece, work(piece)) for piece in pieces)
        return
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=fork, initializer=_begin, initargs=(work, os.getpid())) as pool:
        flying: deque[tuple[X, Future[Y]]] = deque()
        try:
            for piece in pieces:
                flying.append((piece, pool.submit(_run, piece)))
                if len(flying) > 2 * workers:
                    first, future = flying.popleft()
                    yield first, future.result()
            while flying:
                first, future = flying.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, most likely for want of memory; use fewer --workers and run again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    end_with_parent()
    if os.getppid() != parent:  # killed before we asked to be told
        os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a tokenizer's own threads do not survive a fork


def _run(piece: Any) -> Any:
    assert _work is not None, "the initializer has run"
    return _work(piece)
