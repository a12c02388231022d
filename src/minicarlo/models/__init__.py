"""Networks of any framework, read into one kind of graph; a file is never allowed to run code."""

from __future__ import annotations

from minicarlo.models.network import Inputs, Network
from minicarlo.models.reading import read_network

__all__ = ["Inputs", "Network", "read_network"]
