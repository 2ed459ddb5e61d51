"""The four pictures of a report: how far each lane climbed, where operations differ, how logits drift, how fast."""

from __future__ import annotations

from reports.figures.drift import drift
from reports.figures.ladder import ladder
from reports.figures.operations import operations
from reports.figures.throughput import throughput

__all__ = ["drift", "ladder", "operations", "throughput"]
