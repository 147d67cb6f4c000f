"""Who may call our routes: whoever may call the WebUI's own.

    the page's (cards, pictures)   the login of --gradio-auth, where there is one
    /sdapi/v1/…                    as the WebUI's own there: --api-auth; where it has no API, the login
    /lora-runtime/explain, report  either of the two, where there are any
    /lora-runtime/star, file       the page's, and only from the page itself or a program: not from another site's page

A refresh is a POST without a body, which a page of another site could have a browser send. The WebUI's own refreshes
are the same, and no worse comes of it than a look at the folders; with a login the browser leaves the cookie out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBasic

from lora_runtime.panel.origin import foreign

__all__ = ["Guards"]


class Guards:
    """The dependencies to give to FastAPI for each kind of route."""

    def __init__(self, app: Any) -> None:
        """Read from the WebUI's own routes what they ask for."""
        by_path = {getattr(route, "path", ""): route for route in reversed(app.router.routes)}
        login, user = by_path.get("/login_check"), by_path.get("/user")
        own = by_path.get("/sdapi/v1/txt2img")
        has_login = getattr(app, "auth", None) is not None
        if login is not None:
            self.page = [Depends(login.endpoint)]
        else:
            # Closed rather than open, where this gradio keeps its logins elsewhere.
            self.page = [Depends(_nobody)] if has_login else []
        self.writing = [*self.page, Depends(_of_this_page)]
        self.api = self.page if own is None else list(own.dependencies)
        self.explain = self.api or self.page
        if has_login and user is not None and own is not None and own.dependencies:
            self.explain = [Depends(_either(user.endpoint, own.dependencies[0].dependency))]


def _of_this_page(request: Request) -> None:
    if why := foreign(request.headers):
        raise HTTPException(403, f"nothing was changed: {why}")


def _nobody() -> None:
    raise HTTPException(401, "LoRA Runtime does not know how this version of gradio tells who is logged in")


def _either(current_user: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., None]:
    """Return a dependency that lets in who is logged in, and who has the credentials that `check` asks for."""
    logged_in, given = Depends(current_user), Depends(HTTPBasic(auto_error=False))

    def either(user: Any = logged_in, credentials: Any = given) -> None:
        if user is None:
            if credentials is None:
                raise HTTPException(401, "Not authenticated", headers={"WWW-Authenticate": "Basic"})
            check(credentials)

    return either
