"""Receipts: what a run proves, written by what ran, checked by whoever doubts it."""
