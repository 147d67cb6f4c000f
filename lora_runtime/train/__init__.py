"""A folder of pictures in, a LoRA out: what `lora-runtime train` does, for diffusers' pipelines.

config      the numbers, by the names that kohya's trainer has for them; kohya: its spellings of them
folders     `20_robot/`: pictures, their captions, and how often each is shown
buckets     sizes that pictures of other shapes are cut to; captions, pixels: how each is shown
batches     which pictures a step sees, and how: made anew from the seed and the number of the epoch
models/     what a pipeline makes of a picture and a caption; encoding, encoded: kept, so that it is made once
loss        what is to be made small: a pure function; randomness: the noise of a step
layers      PEFT's, around the modules that are trained; names: what files call them
quantised   their base in 4 or 8 bits
new_word    a word that is learnt beside them
learning    optimiser, rates, running mean
run         one step, and what is on the model meanwhile
loop        the steps, what is kept of them, and how a broken run goes on from its state
file        what is written, as other tools read it: notes, samples, charts
loading     a pipeline from a folder or a single file
"""

from __future__ import annotations

from lora_runtime.train.config import Config, read_config
from lora_runtime.train.loading import load_pipeline
from lora_runtime.train.loop import Step, Trained, train

__all__ = ["Config", "Step", "Trained", "load_pipeline", "read_config", "train"]
