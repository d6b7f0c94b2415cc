"""OpenAI's wire format: files, batches, chat completions, responses and embeddings."""
