"""The program's own HTTP API, with its credentials."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import shared


class Api:
    """Two of its routes; those of --api-auth ("name:password,…") may call them, or anybody without it."""

    def __init__(self, app: Any) -> None:
        given = shared.cmd_opts.api_auth or ""
        self.credentials = dict(pair.split(":", 1) for pair in given.split(",") if pair)
        guards = [Depends(self.auth)] if given else []
        for path in ("/sdapi/v1/txt2img", "/sdapi/v1/refresh-vae"):
            app.add_api_route(path, self.nothing, methods=["POST"], dependencies=guards)

    def nothing(self) -> None:
        """Do nothing: who may ask for it is all that there is to it."""

    def auth(self, credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> bool:  # noqa: B008 - as FastAPI wants it
        """Return True for one of them."""
        known = self.credentials.get(credentials.username)
        if known is not None and secrets.compare_digest(credentials.password, known):
            return True
        raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})
