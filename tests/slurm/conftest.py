"""The cluster of this folder's tests; starting it takes a few seconds."""

from collections.abc import Iterator

import pytest
from cluster import Cluster, missing_daemons, running_cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A running Slurm."""
    missing = missing_daemons()
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
    with running_cluster() as cluster:
        yield cluster
