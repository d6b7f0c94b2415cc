"""Anthropic's wire format: message batches, and messages live."""
