"""The workbench: LoRA files made of LoRA files and of checkpoints, exact in ΔW, and what each step kept.

One file a verb, and the rooms that they share:

    sources      what a merge is made of: files with strengths, tags; methods: how changes become one
    matching     which modules of several files are the same; parallel: modules side by side
    base_model   a checkpoint's weights, one at a time, by LoRA files' names
    codes        weights in 8 bits and less, to values and back, one file a kind; requantise: what bake does with them
    changes      what a file changes in a module: factors where there are some, else ΔW
    low_rank     the algebra of factors; sizes: how many ranks stay
    meetings     how the changes of two files meet in a module, in figures and in words
    balance      a prompt with its strengths written anew; heat_map and tables: a report as people see it
    coverage     how much of a file fits a model, by its header
    known_models names of published models; naming: what files call modules; fusing: rows cut and put together
    draft        a file in the making, with spelling (its keys), notes (its metadata), kept (what it has of the whole)
    new_words    rows that a table of tokens has more than its base, of extract
    writing      safetensors, tensor by tensor, all or nothing; progress: a bar
"""

from __future__ import annotations

from lora_runtime.workbench.average import Averaged, average
from lora_runtime.workbench.bake import Baked, Requantised, bake
from lora_runtime.workbench.balance import balanced
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.compare import Compared, Meeting, compare
from lora_runtime.workbench.convert import SPELLINGS, convert
from lora_runtime.workbench.doctor import Diagnosis, Finding, doctor
from lora_runtime.workbench.extract import extract
from lora_runtime.workbench.heat_map import heat_map
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.merge import METHODS, merge
from lora_runtime.workbench.report import Between, Block, Reported, report
from lora_runtime.workbench.resize import resize
from lora_runtime.workbench.to_lora import to_lora

__all__ = [
    "METHODS",
    "SPELLINGS",
    "Averaged",
    "Baked",
    "Between",
    "Block",
    "Compared",
    "Diagnosis",
    "Finding",
    "Meeting",
    "Model",
    "Outcome",
    "Reported",
    "Requantised",
    "average",
    "bake",
    "balanced",
    "compare",
    "convert",
    "doctor",
    "extract",
    "heat_map",
    "merge",
    "report",
    "resize",
    "to_lora",
]
