"""Speech while its codes still come in: windows of codes decoded with some past and some future, and cross-faded.

The decoders are not causal: what a code sounds like depends on its neighbours on both sides (in WavTokenizer, through
attention and group norms, on all of them). So a window holds codes before the part that is kept, for context, and
`lookahead` codes behind it. What that costs is measured by `benchmarks/streaming_codec.py`, which also chose the sizes
below.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from aromni_jax.errors import UserError

_PERIOD = 4  # codes: windows begin at multiples of it, see `_emit`


class WindowDecoder(Protocol):
    """What streaming needs of a codec: `hop` samples per code, and one compilation for all lengths up to `width`."""

    @property
    def hop(self) -> int: ...

    def decode(self, codes: np.ndarray, *, width: int) -> np.ndarray | list[np.ndarray]: ...


class SpeechStream:
    """One utterance: `push` codes as they come, `close` after the last; the samples are those of `hop` per code.

    What comes out depends on the codes alone, not on how they were cut into pushes.

    Args:
      codec: decodes [1, T] codes.
      window: codes decoded at once; a longer one costs more per code and knows more of the past. WavTokenizer comes
        closer with every code (the default is about as long as what it was trained on), the small codec needs 48.
      lookahead: codes behind the part that is kept. The first of them is decoded again by the next window and blended
        over its length, so that the seam does not click; with 0 windows are just joined. Beyond 8 little is gained.
      first: codes in the first part: the first samples come after `first + lookahead` codes.
      step: codes in every later part.

    Raises:
      UserError: sizes that do not fit each other.
    """

    def __init__(
        self, codec: WindowDecoder, *, window: int = 128, lookahead: int = 8, first: int = 8, step: int = 16
    ) -> None:
        if min(first, step) < 1 or lookahead < 0 or window < max(first, step) + lookahead:
            raise UserError(
                f"stream of window {window}, lookahead {lookahead}, first {first}, step {step}: parts need a code, and "
                "the window must hold a part and its lookahead"
            )
        self._codec = codec
        self._window, self._lookahead, self._step = window, lookahead, step
        self._codes = np.zeros(0, np.int64)  # from the first that a window may still need
        self._done = 0  # of them, how many have come out as samples
        self._beyond = np.zeros(0, np.float32)  # what the last window said about the code behind its part
        self._part = first
        self._closed = False

    def push(self, codes: Sequence[int] | np.ndarray) -> np.ndarray:
        """int [n], any n -> the samples that are settled by them, float32 [hop * parts], often none.

        Raises UserError: codes out of range (at the latest when their window is decoded), or after `close`.
        """
        if self._closed:
            raise UserError("this speech stream is closed; open another for the next utterance")
        codes = np.asarray(codes)
        if codes.ndim != 1 or (codes.size and codes.dtype.kind not in "iu"):
            raise UserError(f"a stream takes one row of whole numbers, not {codes.dtype} {list(codes.shape)}")
        self._codes = np.concatenate([self._codes, codes.astype(np.int64)])
        pieces = [np.zeros(0, np.float32)]
        while len(self._codes) - self._done >= self._part + self._lookahead:
            pieces.append(self._emit(self._part))
            self._part = self._step
        return np.concatenate(pieces)

    def close(self) -> np.ndarray:
        """All samples that remain, float32 [n]; nothing may be pushed afterwards."""
        self._closed = True
        remaining = len(self._codes) - self._done
        return self._emit(remaining) if remaining else np.zeros(0, np.float32)

    def _emit(self, part: int) -> np.ndarray:
        """The samples of the next `part` codes."""
        hop, end = self._codec.hop, min(self._done + part + self._lookahead, len(self._codes))
        # A codec that finds its phases starts from a pattern that repeats after a few frames. Windows that begin at the
        # same place of it agree about the phases where they overlap; others would cancel each other in the seam.
        start = min(self._done, -(-max(0, end - self._window) // _PERIOD) * _PERIOD)
        wave = np.array(self._codec.decode(self._codes[None, start:end], width=self._window)[0], np.float32)
        stop = (self._done + part - start) * hop
        piece = wave[(self._done - start) * hop : stop]
        seam = len(self._beyond)
        rising = np.linspace(0, 1, seam, dtype=np.float32)
        piece[:seam] = rising * piece[:seam] + (1 - rising) * self._beyond
        self._beyond = wave[stop : stop + hop]
        self._done += part
        forget = max(0, self._done - self._window) // _PERIOD * _PERIOD
        self._codes, self._done = self._codes[forget:], self._done - forget
        return piece
