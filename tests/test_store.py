"""Writing beside arrays: whole or not at all, and an error that names the file."""

import sys
import types

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
    with (
        full_disk(8192),
        pytest.raises(UserError, match=r"cannot write .*(metrics\.jsonl|tfevents.*) \(File too large\)"),
    ):
        for step in range(1, 2000):
            log.write(step, "train", {"loss": 1.0})
    log.close()
    assert len((tmp_path / "metrics.jsonl").read_bytes()) <= 8192


def test_what_a_failed_call_leaves_is_not_heard_later(monkeypatch):
    """Orbax's abandoned tasks end when they end; what others could not raise is still heard."""
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)

    def fail():
        raise OSError("cut off")

    assert isinstance(store.attempt(fail)[1], OSError)

    def lost(file, error):
        task = types.SimpleNamespace(cr_code=types.SimpleNamespace(co_filename=file))
        return types.SimpleNamespace(exc_type=type(error), exc_value=error, object=task)

    sys.unraisablehook(lost("site-packages/orbax/serialization.py", ValueError("no array")))
    sys.unraisablehook(lost("ours.py", RuntimeError("Event loop is closed")))
    assert heard == []
    other = lost("ours.py", ValueError("no array"))
    sys.unraisablehook(other)
    assert heard == [other]


def test_a_torn_line_makes_way_for_the_next(tmp_path):
    file = tmp_path / "history.jsonl"
    for torn, kept in ((b"", b""), (b'{"a": 1}\n{"b', b'{"a": 1}\n'), (b"\0\0", b""), (b'{"a": 1}\n', b'{"a": 1}\n')):
        file.write_bytes(torn)
        store.append_line(file, {"c": 2})
        assert file.read_bytes() == kept + b'{"c": 2}\n'
