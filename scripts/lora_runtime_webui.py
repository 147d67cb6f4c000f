"""What the WebUI looks for. The extension itself is the package `extension/`, loaded here under a private name."""

import importlib.util
import sys
from pathlib import Path

# Resolved, as is what it is compared with: the extension's folder may be a link, under which its modules then have
# their names.
_ROOT = Path(__file__).resolve().parent.parent
_NAME = "lora_runtime_webui_extension"


def _load():
    """Return the extension's entry point, freshly imported: Reload UI takes up new code, its own and the library's."""
    for name, module in list(sys.modules.items()):
        ours = name == _NAME or name.startswith((f"{_NAME}.", "lora_runtime.")) or name == "lora_runtime"
        if ours and _ROOT in Path(getattr(module, "__file__", None) or "").resolve().parents:
            del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        _NAME, _ROOT / "extension" / "__init__.py", submodule_search_locations=[str(_ROOT / "extension")]
    )
    module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    # The WebUI takes the folder off sys.path again after this script, and lora_runtime must be found until then.
    spec.loader.exec_module(module)
    return module


try:
    LoraRuntimeScript = _load().start()
except Exception as error:
    line = f"[lora-runtime] not started, the built-in Lora extension stays: {type(error).__name__}: {error}"
    try:
        print(line)
    except UnicodeEncodeError:  # a console on Windows may lack characters of a path
        print(ascii(line)[1:-1])
