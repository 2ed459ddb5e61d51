"""Receipts in; pictures, tables and pages out."""
