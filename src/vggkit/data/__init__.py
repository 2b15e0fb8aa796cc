"""Images to batches on the device."""
