"""nightmill: large numbers of LLM requests, cheaply and safely; every row and every cent accounted for."""
