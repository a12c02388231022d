"""Network graphs as data: what a graph from a stranger may hold."""

from __future__ import annotations
