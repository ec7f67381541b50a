"""Writing beside arrays: whole or not at all, and an error that names the file."""

import pytest

from aromni_jax import store
from aromni_jax.errors import UserError
from aromni_jax.training.metrics import MetricsLog
from tests.full_disk import full_disk


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    file = tmp_path / "metrics.json"
    store.write_json(file, {"a": 1})
    with full_disk(8192), pytest.raises(UserError, match=r"cannot write .*metrics\.json \(File too large\)"):
        store.write_json(file, {"a": "x" * 20_000})
    assert store.read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_log_on_a_full_disk_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    log = MetricsLog(tmp_path, 0)
    with full_disk(8192), pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl \(File too large\)"):
        for step in range(1, 2000):
            log.write(step, "train", {"loss": 1.0})
    log.close()
    assert len((tmp_path / "metrics.jsonl").read_bytes()) <= 8192
