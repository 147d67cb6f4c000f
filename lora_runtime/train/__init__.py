"""A folder of pictures in, a LoRA out: what `lora-runtime train` does, for diffusers' pipelines.

config      the numbers, by the names that kohya's trainer has for them
folders     `20_robot/`: pictures, their captions, and how often each is shown
buckets     sizes that pictures of other shapes are cut to
batches     which pictures a step sees, and how: made anew from the seed and the number of the epoch
loss        what is to be made small: a pure function
loop        the steps, what is kept of them, and how a broken run goes on
file        what is written, as other tools read it
"""
