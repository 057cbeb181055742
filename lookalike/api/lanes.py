"""Where the server decodes: most pictures on every core, the few that need much work apart from them, and behind them.

So an ordinary picture does not wait for those that take seconds of a core each, however many are sent.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from lookalike.api import guard, problems
from lookalike.api.problems import Problem, retry
from lookalike.api.served import Run
from lookalike.images.decode import ImageError
from lookalike.images.decoder import Decoders, TooSlowError

T = TypeVar("T")


class Lane:
    """Some decoders, and a thread for each."""

    def __init__(self, count: int, most: int, nice: int = 0) -> None:
        """Start nothing yet.

        most  pictures under way and waiting; one more is turned away.
        nice  by how much everything else on the machine comes first.
        """
        self._decoders, self._threads = Decoders(count, nice), ThreadPoolExecutor(count, "decode")
        self._most, self._taken = most, 0

    async def run(self, work: Callable[[Run], T], seconds: float) -> T:
        """Have a thread decode with a decoder, which is stopped where the client is answered before it is done.

        Raises Problem for a picture that is not accepted, took too long, or found no place.
        """
        self.check()
        deadline, begun = time.monotonic() + seconds, threading.Event()

        def decode() -> T:
            with self._decoders.one() as decoder:
                begun.set()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError  # nobody waits for it any more
                return work(partial(decoder.run, patience=left))

        self._taken += 1
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._threads, decode), seconds)
        except TooSlowError as error:
            raise Problem(problems.TOO_SLOW, str(error)) from None
        except TimeoutError:
            if begun.is_set():
                raise Problem(problems.TOO_SLOW, f"decoding took more than {seconds:g} seconds") from None
            raise _full() from None
        except guard.LaboriousError:
            raise
        except guard.RefusedError as error:
            raise Problem(problems.BY_NAME[error.kind], str(error)) from None
        except ImageError as error:
            raise Problem(problems.BROKEN_IMAGE, str(error)) from None
        finally:
            self._taken -= 1

    def check(self) -> None:
        """Raise Problem where no place is free."""
        if self._taken >= self._most:
            raise _full()

    def close(self) -> None:
        """Finish what is under way."""
        self._threads.shutdown(cancel_futures=True)
        self._decoders.close()


def _full() -> Problem:
    return retry(problems.QUEUE_FULL, "too many pictures are being decoded; try again")
