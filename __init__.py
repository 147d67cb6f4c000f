"""What ComfyUI looks for in a folder of custom_nodes: the nodes. Imported by anything else, this has none.

The extension and the library are loaded from this folder, the extension under a private name, so that nothing of it
gets on the path of modules that other nodes share.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent
_NAME = "lora_runtime_comfyui_extension"

NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {}


def _load(name, folder):
    """Load a package of this folder under a name, unless a package of that name is there."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, _ROOT / folder / "__init__.py", submodule_search_locations=[str(_ROOT / folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


if __name__ == "lora_runtime":  # from the folder above, where this one, by the name that a clone has, hides the library
    del sys.modules[__name__]
    _load(__name__, __name__)
elif {"comfy", "folder_paths", "nodes"} <= sys.modules.keys():  # ComfyUI's own, which loads these before any node
    _load("lora_runtime", "lora_runtime")
    _load(_NAME, "extension")
    _nodes = importlib.import_module(f"{_NAME}.hosts.comfyui").start()
    NODE_CLASS_MAPPINGS = _nodes
    NODE_DISPLAY_NAME_MAPPINGS = {name: node.TITLE for name, node in _nodes.items()}
