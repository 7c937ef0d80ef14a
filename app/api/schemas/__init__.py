"""OpenAI's request and response objects as msgspec structs, with a cap on every number and list. Knows no behaviour."""
