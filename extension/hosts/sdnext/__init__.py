"""SD.Next: its checkpoints are pipelines of diffusers, which the library knows; only the way to them is the program's.

a generation     batch.py reads the tags, tags.py → session → the parameters of the pipeline's components
                 steps.py: what varies follows the pipeline's own scheduler
                 encoding.py: where the pictures of a batch differ
                 words.py: embeddings that are bundled in LoRA files
offloading       offload.py: weights are in their modules while they are patched
before ours      leftovers.py: what the program's own LoRA has fused
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modules import shared

from lora_runtime.held import ModelState, owned
from lora_runtime.pipelines import ModelView

from ...engine.loading import Loader
from ...engine.models import Models
from ...engine.session import Session
from ...library.shelf import Shelf
from ..sdwebui.folders import lora_folders
from ..sdwebui.presets import Presets
from ..sdwebui.settings import Settings
from .encoding import PromptEncoding
from .models import Checkpoint, Checkpoints, pipeline
from .offload import at_home
from .registration import register
from .steps import PipelineSteps
from .tags import LoraTags


def start() -> None:
    """Register everything; there is no Script class, since the program has a callback for all that is needed."""
    checkpoints, steps = Checkpoints(), PipelineSteps()
    models = Models(Checkpoint.view, _hold)
    session = Session(models, steps)
    loader = Loader(Shelf(lora_folders()))
    tags = LoraTags(session, steps, models, checkpoints, loader, Settings(shared.opts), Presets())
    register(tags, PromptEncoding(session, checkpoints, tags.tell_job, tags.encoded_one_by_one))


@contextmanager
def _hold(looked_at: ModelView) -> Iterator[ModelState]:
    """Hold a model whose weights are in its modules."""
    with at_home(pipeline(), looked_at), owned(looked_at) as state:
        yield state
