"""What the tests stand on: trees, file systems, faults, processes. Only archives.py and surgery.py know cachekit."""
