"""Fakes and tiny models that the tests share."""
