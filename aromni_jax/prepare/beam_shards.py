"""What a Beam worker runs. Imports Apache Beam, so nothing but the pipeline imports this."""

from __future__ import annotations

import apache_beam

from aromni_jax.prepare.corpus import Job, make_shard
from aromni_jax.prepare.tokenising import Tokeniser


class MakeShards(apache_beam.DoFn):
    """(shard, place in the plan) -> nothing; the shard is in its folder then."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tokeniser: Tokeniser | None = None

    def setup(self) -> None:
        """The codecs are loaded once for all shards of a worker."""
        self._tokeniser = self._job.tokeniser()

    def process(self, element: tuple[int, int]) -> None:
        """Make one."""
        assert self._tokeniser is not None
        make_shard(self._job, self._tokeniser, *element)
