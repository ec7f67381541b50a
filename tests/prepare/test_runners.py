"""Whoever runs the pipeline, the bytes are the same."""

import pytest

from tests.prepare import corpora

RUNNERS = {
    "threads": ["--direct_num_workers=2", "--direct_running_mode=multi_threading"],
    "processes": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    # The protocol by which Beam talks to Flink and Spark, with a job server of its own.
    "portable": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_gives_the_same_bytes(folder_set, tmp_path, runner):
    out, _, media = folder_set
    corpora.prepare(media, tmp_path / "data", items_per_shard=5, beam_options=RUNNERS[runner])
    made, wanted = contents(tmp_path / "data"), contents(out)
    assert made.keys() == wanted.keys()
    assert [name for name in wanted if made[name] != wanted[name]] == []
