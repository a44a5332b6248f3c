"""Servers under load, with and without compression."""
