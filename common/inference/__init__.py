"""Applying a finished run: to the slices of a data set, whole volumes, new pictures."""
