"""A page for people without a WebUI: `lora-runtime studio`.

faults      what is wrong with what was asked
settings    what a person asks for, and what of it cannot be
samplers    the names of samplers, as the WebUI has them, to diffusers' schedulers
models      which models can be chosen, and the one that is in memory
preview     the picture so far
painting    settings and a pipeline to pictures with their parameters, and what acted
job         a painting in a thread: what it says on the way, and how it is cancelled
workshop    all of these for one server: the models, the LoRAs, the jobs of its users
shelf       the LoRAs as cards
words       what the page says, as HTML
reading     a picture's parameters back into settings
page        the page itself, with gradio; wiring: what its buttons do
panel_routes  what the stack panel beside the prompt asks for
server      how the page is served, and to whom
"""
