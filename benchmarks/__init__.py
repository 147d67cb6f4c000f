"""What the library costs, beside the other ways to do the same: `make bench`."""
