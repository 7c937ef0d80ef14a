"""Text <-> tokens: tokenizing, detokenizing, stop strings, chat templates. Knows no HTTP and no scheduling."""
