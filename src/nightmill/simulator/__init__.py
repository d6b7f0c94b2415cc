"""Providers on this machine: batches and live calls in the formats of `app.FORMATS`, with faults on demand.

They speak over a real socket, so any client can be pointed at them; they answer with
pretended text, keep provider time that can run faster than ours, and write an invoice each
(``GET /simulator/invoice``), so that a client's sums can be checked against someone else's.
They know nothing of the clients in this package.
"""

from __future__ import annotations

from nightmill.simulator.app import create_app
from nightmill.simulator.config import SimulatorConfig
from nightmill.simulator.serving import in_thread, serve

__all__ = ["SimulatorConfig", "create_app", "in_thread", "serve"]
