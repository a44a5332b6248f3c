"""Compressed models behind servers. What a server needs is imported by the module that is about it."""
