"""What AUTOMATIC1111's WebUI and the Forges have in common: their scripts, pages, options, callbacks and jobs."""
