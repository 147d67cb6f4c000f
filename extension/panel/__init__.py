"""What the browser asks for: cards as HTML, and the routes with their guards. FastAPI is used; no host is known."""
