"""HTTP only: routes, schemas, framing, authorization. Never imports torch or transformers."""
