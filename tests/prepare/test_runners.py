"""Whoever runs the pipeline, the bytes are the same."""

import pytest

from tests.prepare import corpora

RUNNERS = {
    "threads": ["--direct_num_workers=2", "--direct_running_mode=multi_threading"],
    "processes": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    # The protocol by which Beam talks to Flink and Spark, with a job server of its own.
    "portable": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_gives_the_same_bytes(folder_set, tmp_path, runner):
    out, _, media = folder_set
    corpora.prepare(media, tmp_path / "data", items_per_shard=5, beam_options=RUNNERS[runner])
    files = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    assert [
        path.relative_to(tmp_path / "data") for path in sorted((tmp_path / "data").rglob("*")) if path.is_file()
    ] == files
    for name in files:
        assert (tmp_path / "data" / name).read_bytes() == (out / name).read_bytes(), name
