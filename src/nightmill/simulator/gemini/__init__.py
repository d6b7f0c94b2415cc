"""Gemini's wire format: files, batches as long-running operations, live answers and embeddings."""
