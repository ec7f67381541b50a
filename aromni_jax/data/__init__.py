"""Token records, their files, packing, and the batches that training takes."""

from aromni_jax.data.batch import Batch
from aromni_jax.data.files import read_records, write_records
from aromni_jax.data.manifest import Manifest, read_manifest
from aromni_jax.data.pipeline import Batches, batches, epoch
from aromni_jax.data.reading import slowest_file
from aromni_jax.data.record import Record

__all__ = [
    "Batch",
    "Batches",
    "Manifest",
    "Record",
    "batches",
    "epoch",
    "read_manifest",
    "read_records",
    "slowest_file",
    "write_records",
]
