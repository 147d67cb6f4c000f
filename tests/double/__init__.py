"""A double of the WebUI, as much of it as the extension meets: written from its contract, without any of its code.

`modules/` stands for the WebUI's package of that name, `builtin/` for its own Lora extension and `others/` for a script
with axes; `webui.py` starts them, paints with them and reloads them. Where the contract is known to differ from what a
reader would expect, a comment says so. The real program runs the same extension in tests/webui/.
"""
