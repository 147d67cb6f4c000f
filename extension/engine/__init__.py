"""From tags to what a model shows. torch is used here; no host is known."""
