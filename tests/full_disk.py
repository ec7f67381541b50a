"""A stand-in for a full disk."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(file_bytes: int):
    """Lets no file of this process grow beyond `file_bytes`: a write beyond fails with EFBIG, as on a full disk.

    Only around the code that is meant to fail, inside the test: between fixtures pytest writes its own log.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
