"""A provider on this machine: OpenAI's files, batches, chat and embeddings, with faults on demand.

It speaks the wire format over a real socket, so any client can be pointed at it; it answers with
pretended text, keeps provider time that can run faster than ours, and writes its own invoice
(``GET /simulator/invoice``), so that a client's sums can be checked against someone else's.
Knows nothing of the clients in this package.
"""

from __future__ import annotations

from nightmill.simulator.app import create_app
from nightmill.simulator.config import SimulatorConfig
from nightmill.simulator.serving import in_thread, serve

__all__ = ["SimulatorConfig", "create_app", "in_thread", "serve"]
