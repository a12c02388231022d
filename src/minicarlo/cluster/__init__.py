"""Work on many processes and machines, through Dask: workers may come, be killed and come again; no scheduler of ours."""

from __future__ import annotations

from minicarlo.cluster.crew import Crew, Order
from minicarlo.cluster.places import FORMS, Where, connect
from minicarlo.cluster.shards import ShardOrder, complete

__all__ = ["FORMS", "Crew", "Order", "ShardOrder", "Where", "complete", "connect"]
