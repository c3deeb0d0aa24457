"""The part of the engine that knows Ray: a cluster, workers as actors, and the pool of them.

Only the processes of `ray_process`, `actor` and `task` import Ray, never the driver's.
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice; CPU actors see no GPU either way

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.ray_pool import RayPool

__all__ = ["Cluster", "RayPool"]
