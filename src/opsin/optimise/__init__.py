"""Pictures made step by step."""
