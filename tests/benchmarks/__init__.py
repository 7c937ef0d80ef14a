"""Measurements, run by hand with `make bench`; nothing here passes or fails."""
