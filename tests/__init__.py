"""Tests, flat: one file for each module."""
