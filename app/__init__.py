"""tfoai: any Hugging Face transformers text model behind the OpenAI HTTP API. Owns nothing itself; see docs/architecture.md."""
