"""What the tests stand on: trees, file systems, faults, processes. Nothing here imports cachekit."""
