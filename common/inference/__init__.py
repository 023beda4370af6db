"""A finished run at work: on the slices of a data set, on whole volumes, on new pictures."""
