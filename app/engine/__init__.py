"""Tokens in, tokens out: sequences, scheduling, runners, sampling. Knows no HTTP, no text, no metrics library.

`sequence`, `scheduler` and `engine` are importable without torch, so that the server listens before torch is loaded.
"""
