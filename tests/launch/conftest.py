"""One local Ray cluster for the tests of a module that need one: it takes seconds to start, and two on a machine disturb each other."""

from collections.abc import Iterator

import pytest

from vitscale_launch.environment import prepare_environment

# Before any test module imports Ray, which reads the environment then.
prepare_environment(local=True)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """A connection to a local cluster with 4 logical CPUs, gone when the next module, which may start one of its own, begins."""
    from vitscale_launch.cluster import ray_cluster

    with ray_cluster(address=None, num_cpus=4, show_workers=False):
        yield
