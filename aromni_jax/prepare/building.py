"""A data set is built beside its place and moved there whole: what stands there is complete, or it is not there."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from aromni_jax.data.manifest import Manifest, is_data_set, read_manifest
from aromni_jax.errors import UserError


def already_built(out_dir: pathlib.Path, request: dict[str, Any], force: bool) -> Manifest | None:
    """The manifest in `out_dir` if it answers the same request; None if there is work to do.

    Raises:
      UserError: `out_dir` holds something else and `force` is not set; or it is no data set at all (never replaced).
    """
    if out_dir.name in ("", ".."):
        raise UserError(f"the data set cannot be {out_dir} itself: name a folder that can be made")
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file: name a folder that can be made")
    if not out_dir.exists() or not any(out_dir.iterdir()):
        return None
    if not is_data_set(out_dir):
        raise UserError(f"{out_dir} is not empty and holds no data set: give another folder")
    if force:
        return None
    manifest = read_manifest(out_dir)
    if manifest.request == request:
        return manifest
    changed = sorted(key for key in {*request, *manifest.request} if manifest.request.get(key) != request.get(key))
    key = changed[0]
    raise UserError(
        f"{out_dir} holds another data set ({key}: {manifest.request.get(key)!r} there, {request.get(key)!r} asked): "
        "`aromni prepare --force` replaces it, or give another folder"
    )


@contextlib.contextmanager
def building(out_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder that takes the place of `out_dir` when the block ends well, and vanishes when it does not."""
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    try:
        for left_over in (partial, replaced):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if out_dir.exists():
            out_dir.rename(replaced)
        try:
            partial.rename(out_dir)
        except OSError:
            if replaced.exists():  # or the cleaning up below would take the old data set with it
                replaced.rename(out_dir)
            raise
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out_dir}: {error.strerror or error}") from None
    finally:
        for left_over in (partial, replaced):
            shutil.rmtree(left_over, ignore_errors=True)
