"""From volumes and pictures to batches: reading, checking, slicing, splitting, loading."""
