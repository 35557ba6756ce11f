"""Folders on disk: written whole or not at all, checked by checksums, locked, evicted, copied to S3."""
