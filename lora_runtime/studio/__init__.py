"""A page for people without a WebUI: `lora-runtime studio`.

faults      what is wrong with what was asked
settings    what a person asks for, and what of it cannot be
samplers    the names of samplers, as the WebUI has them, to diffusers' schedulers
models      which models can be chosen, and the one that is in memory
preview     the pictures so far
canvas      one picture to be painted, and whoever asked for it
painting    canvases and a pipeline to pictures with their parameters, and what acted
job         what one person waits for: what it says on the way, and how it is cancelled
workshop    all of these for one server: the models, the LoRAs, the line in which its users' pictures wait
shelf       the LoRAs as cards
words       what the page says, as HTML
reading     a picture's parameters back into settings
page        the page itself, with gradio; wiring: what its buttons do
panel_routes  what the stack panel beside the prompt asks for
server      how the page is served, and to whom
"""
