"""The pipeline that is loaded."""

from __future__ import annotations

from typing import Any


class ModelData:
    def __init__(self) -> None:
        self.sd_model: Any = None

    def get_sd_model(self) -> Any:
        """Return the pipeline; load it where there is none."""
        if self.sd_model is None:
            from modules.sd_models import reload_model_weights

            reload_model_weights()
        return self.sd_model


model_data = ModelData()
