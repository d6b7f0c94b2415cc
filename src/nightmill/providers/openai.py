"""OpenAI itself: the server that the others are shaped after, with its organisations and projects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nightmill.config import Timing
from nightmill.providers._env import sendable
from nightmill.providers.compatible import Compatible, FlexBatches, kind_of
from nightmill.providers.servers import SERVERS, Server, address, key_of

NAME = "openai"
_OWN = SERVERS[NAME]
_USUAL = Timing()


class OpenAI(FlexBatches):
    """One model of one OpenAI account."""

    def __init__(
        self, model: str, *, key: str, base_url: str = "", organization: str = "", project: str = "",
        timing: Timing = _USUAL, server: Server = _OWN,
    ) -> None:  # fmt: skip
        super().__init__(
            NAME, model, _scoped(server, organization, project), key=key, base_url=base_url,
            organization=organization, project=project, timing=timing,
        )  # fmt: skip


def connect(model: str, env: Mapping[str, str], timing: Timing = _USUAL, server: Server = _OWN) -> Compatible:
    """``model`` of OpenAI, or of the server that stands in for it; see `compatible.connect`."""
    key, base_url = key_of(NAME, server, env), address(NAME, server, env)
    organization, project = (
        sendable(name, env.get(name, "").strip()) for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
    )
    if server.limits.batch_requests:
        return OpenAI(
            model, key=key, base_url=base_url, organization=organization, project=project, timing=timing, server=server
        )
    return kind_of(server)(
        NAME, model, _scoped(server, organization, project), key=key, base_url=base_url, organization=organization,
        project=project, timing=timing,
    )  # fmt: skip


def _scoped(server: Server, organization: str, project: str) -> Server:
    scopes = {"OpenAI-Organization": organization, "OpenAI-Project": project}
    return replace(server, headers={**server.headers, **{name: value for name, value in scopes.items() if value}})
