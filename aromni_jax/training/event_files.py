"""TensorBoard files that are written where they are asked for, so that a killed run leaves all that it logged.

tensorboardX itself writes in a thread, up to two minutes late; where that thread meets a full disk it dies, its queue
of ten fills up, and whoever logs next waits for ever.
"""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import time

from tensorboardX import SummaryWriter
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.writer import FileWriter

from aromni_jax import store


class EventFiles(SummaryWriter):
    """A `SummaryWriter` whose every `add_...` is one write to the file; UserError if the disk does not take it."""

    all_writers: dict[str, FileWriter] | None

    def _get_file_writer(self) -> FileWriter:
        if self.all_writers is None:  # set to None by SummaryWriter's own __init__
            writer = _AtOnce(pathlib.Path(self.logdir))
            self.all_writers = {self.logdir: writer}
            if self.purge_step is not None:
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                writer.add_event(event_pb2.Event(session_log=start), self.purge_step)
        return self.all_writers[self.logdir]


class _AtOnce(FileWriter):
    def __init__(self, folder: pathlib.Path) -> None:
        self._default_metadata: dict[str, float] = {}
        self.event_writer = _EventFile(folder)


class _EventFile:
    def __init__(self, folder: pathlib.Path) -> None:
        # A name of its own for every start; TensorBoard reads them in the order of their names.
        started = f"{time.time_ns():019d}"
        self._path = folder / f"events.out.tfevents.{started}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 (for as long as the run)
        except OSError as error:
            raise store.unwritable(self._path, error) from None
        self.add_event(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: event_pb2.Event) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data)))
        try:
            store.append(self._file, b"".join(parts))
        except OSError as error:
            raise store.unwritable(self._path, error) from None

    def get_logdir(self) -> str:
        return str(self._path.parent)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def close(self) -> None:
        self._file.close()
