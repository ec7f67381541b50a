"""One synthetic data set for all tests of this folder, and a compilation cache that they share."""

import jax
import pytest

from tests.training import small_run


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Several tests compile the same step; the second time it comes from a temporary folder."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    """Folder of the synthetic data set."""
    return small_run.write_data(tmp_path_factory.mktemp("data"))
