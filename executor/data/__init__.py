"""What stays on disk: values by content, the snapshot of the source, and the record of each run."""
