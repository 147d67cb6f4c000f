"""The stack panel: the LoRAs of a prompt as rows with sliders, for any page that has a prompt in it.

The browser's half is `<lora-stack>`, plain ES modules in `web/`. A page mounts it so:

    <script type="module" src="…/web/HASH/stack.js"></script>
    <lora-stack base="…/lora-runtime" for="#prompt textarea"></lora-stack>

`for` is a CSS selector of the prompt's text area, which is the only state: rows show what stands there, and a slider
writes there. `base` is where the host answers, with the functions below: texts in, tables out that JSON can hold. Spans
are in UTF-16 code units, as a text area counts.

    POST base/tags         {prompt}                       tags(…): a row for each tag, and what there is to say
    POST base/edit         {prompt, tag, field, value}    edit(…): one text and the span that it replaces, or an error
    POST base/complete     {prompt, cursor}               complete(…): what may stand at the cursor
    POST base/save-preset  {prompt, tag, name}            block weights of a tag under a name: `panel/presets.py`
    GET  base/masks        –                              masks that are there, base/mask?name= one: `panel/masks.py`
    POST base/conflicts    {prompt}                       with `conflicts`: what LoRAs do to each other
    GET  base/sets         –                              with `sets`, and two addresses more: `panel/sets.py`
    GET  base/web          –                              {"hash": web_hash()}, where the page cannot know it
    GET  base/web/HASH/NAME                               web_file(HASH, NAME): may be kept for ever

`endpoints(Questions(…))` are these as functions for FastAPI. Further attributes: `sets` and `conflicts` for their
buttons; `picture`, a selector of the picture that was painted last, over which regions are drawn, and `picture-width`
and `picture-height`, of the fields with its size.

A host gives a `Library`: where files, their pictures and fits come from. `CatalogLibrary` is that of a `LoraCatalog`;
`lora_runtime.blocks.blocks_in` gives the blocks of a model.
"""

from lora_runtime.panel.changes import edit
from lora_runtime.panel.completion import complete
from lora_runtime.panel.endpoints import endpoints
from lora_runtime.panel.library import CatalogLibrary, Library, PanelFile
from lora_runtime.panel.questions import PromptFacts, Questions
from lora_runtime.panel.rows import tags
from lora_runtime.panel.served import web_file, web_hash

__all__ = [
    "CatalogLibrary",
    "Library",
    "PanelFile",
    "PromptFacts",
    "Questions",
    "complete",
    "edit",
    "endpoints",
    "tags",
    "web_file",
    "web_hash",
]
