"""Decoding many files on every core."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lookalike.base.files import file_digest
from lookalike.base.machine import cores
from lookalike.images.decode import Decoded, ImageError, decode_file
from lookalike.images.decoder import Decoders

CHUNK = 16  # files sent to a decoder at a time


def decode_files(paths: Sequence[Path], size: int, how: str, max_pixels: int, workers: int = 0) -> Iterator[Decoded]:
    """Decode many files on several cores; yield results in the order of `paths`.

    workers  number of processes; 0 for one per core.

    At most four chunks per worker are in progress, so memory does not grow with the number of files.
    """
    workers = workers or cores()
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    decoders, pending = Decoders(workers), deque[Future[list[Decoded]]]()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for chunk in chunks:
                pending.append(threads.submit(_decode_chunk, decoders, chunk, size, how, max_pixels))
                if len(pending) >= 4 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
            decoders.close()


def _decode_chunk(decoders: Decoders, paths: Sequence[Path], size: int, how: str, max_pixels: int) -> list[Decoded]:
    with decoders.one() as decoder:
        results = decoder.each(decode_file, [(path, size, how, max_pixels) for path in paths])
        return [
            Decoded(file_digest(path), None, str(result)) if isinstance(result, ImageError) else result
            for path, result in zip(paths, results, strict=True)
        ]
